//! One table of shapes for each operation, data to fill them, and operations in float64: what
//! parity tests run over, probes measure, and a self-test is held to.

use super::{Activation, NormKind, RopeStyle};
use crate::inference::quant::TensorType;

/// A multiplication: `[n_rows, n_cols]` weights times `n` columns.
#[derive(Clone, Copy, Debug)]
pub struct MatMulCase {
    /// Rows of the weights.
    pub n_rows: usize,
    /// Values in a row, before [`MatMulCase::n_cols`] rounds them up to what a row may have.
    pub n_cols_min: usize,
    /// Columns.
    pub n: usize,
    /// Threads.
    pub n_threads: usize,
}

impl MatMulCase {
    /// Values in a row of this type.
    pub fn n_cols(&self, ty: TensorType) -> usize {
        self.n_cols_min.next_multiple_of(ty.row_unit())
    }
}

/// The smallest, odd ones around the edges of panels, groups and tiles, and those of real models.
pub const MATMUL: &[MatMulCase] = &[
    MatMulCase { n_rows: 1, n_cols_min: 1, n: 1, n_threads: 1 },
    MatMulCase { n_rows: 3, n_cols_min: 61, n: 2, n_threads: 1 },
    MatMulCase { n_rows: 16, n_cols_min: 256, n: 16, n_threads: 1 },
    MatMulCase { n_rows: 17, n_cols_min: 288, n: 3, n_threads: 2 },
    MatMulCase { n_rows: 47, n_cols_min: 500, n: 31, n_threads: 3 },
    MatMulCase { n_rows: 70, n_cols_min: 1056, n: 55, n_threads: 2 },
    MatMulCase { n_rows: 35, n_cols_min: 800, n: 26, n_threads: 2 },
    // Three panels a task: pairs of them and a last one, beside tiles of columns of all lengths.
    MatMulCase { n_rows: 16 * 19 - 3, n_cols_min: 288, n: 45, n_threads: 1 },
    MatMulCase { n_rows: 16 * 12, n_cols_min: 512, n: 64, n_threads: 1 },
    MatMulCase { n_rows: 130, n_cols_min: 896, n: 7, n_threads: 2 },
    // Columns of one tile and of two, over groups of which the last is short.
    MatMulCase { n_rows: 300, n_cols_min: 800, n: 9, n_threads: 1 },
    MatMulCase { n_rows: 70, n_cols_min: 1056, n: 16, n_threads: 2 },
    MatMulCase { n_rows: 40, n_cols_min: 416, n: 17, n_threads: 1 },
    MatMulCase { n_rows: 26, n_cols_min: 544, n: 32, n_threads: 1 },
    MatMulCase { n_rows: 26, n_cols_min: 2336, n: 34, n_threads: 1 },
    MatMulCase { n_rows: 33, n_cols_min: 4864, n: 5, n_threads: 3 },
    MatMulCase { n_rows: 20, n_cols_min: 18_944, n: 1, n_threads: 2 },
];

/// Numbers that look random and are the same in every run.
pub struct Numbers(u64);

impl Numbers {
    /// A sequence for each `seed`.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678_9ABC_DEF1)
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        // Xorshift by Marsaglia; a multiplication hides its linear low bits.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// The next one, evenly in -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.draw() & 0xFF_FFFF) as f32 / 8_388_608.0 - 1.0
    }
}

/// Bytes of `n_rows` rows of `n_cols` weights: any codes and integer scales, f16 scales between
/// 2^-8 and 2^-5 of either sign, floats between -1 and 1.
pub fn weights(ty: TensorType, n_rows: usize, n_cols: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let n = n_rows * n_cols;
    match ty {
        TensorType::F32 => (0..n).flat_map(|_| numbers.float().to_le_bytes()).collect(),
        TensorType::F16 => {
            (0..n).flat_map(|_| half::f16::from_f32(numbers.float()).to_le_bytes()).collect()
        }
        TensorType::BF16 => {
            (0..n).flat_map(|_| half::bf16::from_f32(numbers.float()).to_le_bytes()).collect()
        }
        _ => {
            let row_bytes = ty.row_bytes(n_cols).expect("whole rows");
            let mut bytes: Vec<u8> =
                (0..n_rows * row_bytes).map(|_| numbers.draw() as u8).collect();
            let rows = bytes.chunks_exact_mut(row_bytes);
            for block in rows.flat_map(|row| row.chunks_mut(ty.block_bytes())) {
                for &at in f16_places(ty) {
                    let bits = numbers.draw() as u16;
                    // Exponents 7 to 9 of 15, any mantissa and sign.
                    let bits = bits & 0x83FF | (7 + bits % 3) << 10;
                    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                }
            }
            bytes
        }
    }
}

/// Where the blocks of a type keep f16 values.
pub fn f16_places(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::N4 | TensorType::N3 => &[0, 2],
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        TensorType::Q6_K => &[208],
        _ => &[0],
    }
}

/// Activations `[n, stride]` with a few large values, as models have them.
pub fn activations(n: usize, n_cols: usize, stride: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    let mut x = vec![0.0; n * stride];
    for row in x.chunks_exact_mut(stride) {
        for x in &mut row[..n_cols] {
            let large = if numbers.draw().is_multiple_of(97) { 30.0 } else { 1.0 };
            *x = numbers.float() * large;
        }
    }
    x
}

/// An activation in float64.
pub fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Tanh => x.tanh(),
    }
}

/// A norm in float64, in place; without a bias it is zero.
pub fn normed(run: &mut [f64], kind: NormKind, eps: f64, weight: &[f32], bias: Option<&[f32]>) {
    let n = run.len() as f64;
    let mean = if kind == NormKind::Layer { run.iter().sum::<f64>() / n } else { 0.0 };
    let variance = run.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    for (i, (x, w)) in run.iter_mut().zip(weight).enumerate() {
        let b = bias.map_or(0.0, |bias| f64::from(bias[i]));
        *x = (*x - mean) / (variance + eps).sqrt() * f64::from(*w) + b;
    }
}

/// Turns the first pairs of a head by their angles, (cos, sin), in place. In f32 with each product
/// rounded: keys are stored with these bits, whoever turns them.
pub fn turned(head: &mut [f32], style: RopeStyle, angles: &[[f32; 2]]) {
    for (i, [cos, sin]) in angles.iter().enumerate() {
        let (a, b) = match style {
            RopeStyle::Pairs => (2 * i, 2 * i + 1),
            RopeStyle::Halves => (i, i + angles.len()),
        };
        let (x, y) = (head[a], head[b]);
        (head[a], head[b]) = (x * cos - y * sin, x * sin + y * cos);
    }
}
