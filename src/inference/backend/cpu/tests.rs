//! Parity: every kernel against plain f64 arithmetic, and every instruction set against the others.
//!
//! The oracle knows nothing of panels: it takes `dequantize`'s weights and the rounded activations
//! and adds in f64. A kernel's dot products are exact integers; each block (or, where scales are
//! integers, each eight of them) then costs at most three f32 roundings more than the oracle's
//! weights, and the sum over blocks grows by at most half a unit in the last place of what was
//! added so far. So the error is within `2^-24` times the number of roundings times the sum of the
//! magnitudes that were added: the tolerance below, with no slack.

use super::acts::{ActChunk, ActScale, BLOCK_LEN, CHUNK_LEN, Rows, quantize_rows};
use super::isa::Isa;
use super::matmul::{Matrix, act_scale, matmul, needs_acts, panel_bytes};
use super::panel::{self, PANEL_ROWS};
use super::pool::Pool;
use crate::inference::backend::cases::{MATMUL, MatMulCase, activations, f16_places, weights};
use crate::inference::quant::Form;
use crate::inference::quant::{Codes, TensorType, dequantize, f16_to_f32, part};

/// A case of one type with its data.
struct Operands {
    case: MatMulCase,
    ty: TensorType,
    n_cols: usize,
    stride: usize,
    file: Vec<u8>,
    x: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Operands {
    fn new(case: MatMulCase, ty: TensorType) -> Operands {
        let n_cols = case.n_cols(ty);
        let stride = n_cols.next_multiple_of(32);
        let seed = (case.n_rows * 31 + n_cols) as u64;
        Operands {
            case,
            ty,
            n_cols,
            stride,
            file: weights(ty, case.n_rows, n_cols, seed),
            x: activations(case.n, n_cols, stride, seed + 1),
            bias: (case.n % 2 == 1).then(|| activations(1, case.n_rows, case.n_rows, seed + 2)),
        }
    }

    fn row_bytes(&self) -> usize {
        self.file.len() / self.case.n_rows
    }

    fn columns(&self) -> Rows<'_> {
        Rows { data: &self.x, stride: self.stride, n: self.case.n }
    }

    /// The rows in the form that kernels read, packed by `isa`.
    fn packed(&self, isa: Isa) -> Vec<u8> {
        if !needs_acts(self.ty) {
            return self.file.clone();
        }
        let (n_block, panel_bytes) = (self.n_cols / 32, panel_bytes(self.ty, self.n_cols));
        let mut panels = vec![0; self.case.n_rows.div_ceil(PANEL_ROWS) * panel_bytes];
        let rows = self.file.chunks(PANEL_ROWS * self.row_bytes());
        for (rows, panel) in rows.zip(panels.chunks_exact_mut(panel_bytes)) {
            panel::pack(isa, self.ty, rows, n_block, panel);
        }
        panels
    }

    /// `[n, n_rows]`
    fn product(&self, isa: Isa) -> Vec<f32> {
        let mut pool = Pool::new(self.case.n_threads).expect("threads start");
        let mut acts = Vec::new();
        if let Some(per) = act_scale(self.ty) {
            quantize_rows(&mut pool, isa, self.columns(), self.n_cols, per, &mut acts);
        }
        let data = self.packed(isa);
        let (ty, n_rows, n_cols) = (self.ty, self.case.n_rows, self.n_cols);
        let w = Matrix { ty, data: &data, n_rows, n_cols };
        let mut out = vec![f32::NAN; self.case.n * n_rows];
        let bias = self.bias.as_deref();
        matmul(&mut pool, isa, w, self.columns(), &acts, bias, &mut out, n_rows);
        out
    }

    /// The first result that differs from the oracle by more than its roundings can explain.
    fn mismatch(&self, got: &[f32]) -> Option<String> {
        let mut acts = Vec::new();
        let mut pool = Pool::new(1).expect("no thread is needed");
        let per = act_scale(self.ty).unwrap_or(ActScale::Block);
        quantize_rows(&mut pool, Isa::Scalar, self.columns(), self.n_cols, per, &mut acts);
        let rows: Vec<Row> = (0..self.case.n_rows).map(|r| self.row(r)).collect();
        for col in 0..self.case.n {
            let x = match needs_acts(self.ty) {
                true => rounded(&acts, col, self.case.n, self.n_cols),
                false => self.x[col * self.stride..][..self.n_cols].to_vec(),
            };
            for (r, row) in rows.iter().enumerate() {
                let bias = self.bias.as_ref().map_or(0.0, |b| f64::from(b[r]));
                let terms = row.values.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let expected = terms.sum::<f64>() + bias;
                let magnitude = row.magnitudes.iter().zip(&x);
                let magnitude = magnitude.map(|(m, x)| m * f64::from(x.abs())).sum::<f64>();
                // Three roundings a block of 16 at worst; a float lane adds a sixteenth of the row.
                let n_roundings = 3.0 * (self.n_cols as f64 / 16.0) + 16.0;
                let tolerance = 2f64.powi(-24) * n_roundings * (magnitude + bias.abs());
                let got = f64::from(got[col * self.case.n_rows + r]);
                if (got - expected).abs() > tolerance || got.is_nan() {
                    return Some(format!("row {r} column {col}: {got:e} is not {expected:e}"));
                }
            }
        }
        None
    }

    fn row(&self, r: usize) -> Row {
        let bytes = &self.file[r * self.row_bytes()..][..self.row_bytes()];
        let mut values = vec![0.0; self.n_cols];
        dequantize(self.ty, bytes, &mut values);
        let mut magnitudes: Vec<f64> = values.iter().map(|v| f64::from(v.abs())).collect();
        if Codes::of(self.ty) == Codes::WithMin {
            for (k, magnitude) in magnitudes.iter_mut().enumerate() {
                let part = part(self.ty, bytes, k / 32);
                let (k, half) = (k % 32, k % 32 / 16);
                let scale = f16_to_f32(part.d) * f32::from(part.scale[half]);
                let min = f16_to_f32(part.dmin) * f32::from(part.min[half]);
                let code = f64::from(part.codes[k]);
                *magnitude = f64::from(scale.abs()) * code + f64::from(min.abs());
            }
        }
        Row { values, magnitudes }
    }
}

/// A row's weights, and the size of what a kernel adds up for each.
struct Row {
    values: Vec<f32>,
    magnitudes: Vec<f64>,
}

/// Column `col` of rounded activations.
fn rounded(acts: &[ActChunk], col: usize, n: usize, n_cols: usize) -> Vec<f32> {
    let value = |k: usize| {
        let chunk = &acts[k / CHUNK_LEN * n + col];
        let k = k % CHUNK_LEN;
        chunk.scale[k / BLOCK_LEN] * f32::from(chunk.codes[k])
    };
    (0..n_cols).map(value).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn matmul_is_exact_arithmetic_for_every_type_and_shape_and_the_same_on_every_isa() {
    for ty in TensorType::ALL {
        for &case in MATMUL {
            let operands = Operands::new(case, ty);
            let plain = operands.product(Isa::Scalar);
            if let Some(why) = operands.mismatch(&plain) {
                panic!("{ty} {case:?} scalar: {why}");
            }
            for isa in Isa::available() {
                let same = bits(&operands.product(isa)) == bits(&plain);
                assert!(same, "{ty} {case:?}: {} differs from scalar", isa.name());
            }
        }
    }
}

/// Where kernels add in 16 bits, the largest sums there are fit: all codes and scales at one end or
/// the other, and all activations.
#[test]
fn the_largest_sums_are_the_same_on_every_isa() {
    let types = TensorType::ALL.into_iter().filter(|&ty| needs_acts(ty));
    for (ty, n) in types.flat_map(|ty| [(ty, 26), (ty, 36)]) {
        for (first, others) in [(0xFF, 0xFF), (0xFF, 0), (0, 0xFF), (0x80, 0), (0x7F, 0xFF)] {
            let case = MatMulCase { n_rows: 33, n_cols_min: 512, n, n_threads: 1 };
            let mut operands = Operands::new(case, ty);
            for block in operands.file.chunks_mut(ty.block_bytes()) {
                let kept: Vec<(usize, u8)> = f16_places(ty)
                    .iter()
                    .flat_map(|&at| [at, at + 1])
                    .map(|i| (i, block[i]))
                    .collect();
                let scales = match ty {
                    TensorType::Q6_K => 192..208,
                    _ => 0..block.len().min(16),
                };
                block.fill(others);
                block[scales].fill(first);
                kept.into_iter().for_each(|(i, byte)| block[i] = byte);
            }
            for (col, x) in operands.x.chunks_mut(operands.stride).enumerate() {
                x.fill(if col % 2 == 0 { 1.0 } else { -1.0 });
            }
            let plain = operands.product(Isa::Scalar);
            assert_eq!(operands.mismatch(&plain), None, "{ty} scalar");
            for isa in Isa::available() {
                let same = bits(&operands.product(isa)) == bits(&plain);
                assert!(same, "{ty} {first:#x} {others:#x}: {} differs from scalar", isa.name());
            }
        }
    }
}

/// A column's results have the same bits alone and beside others, whatever the threads.
#[test]
fn a_column_does_not_know_its_company() {
    for ty in TensorType::ALL {
        let case = MatMulCase { n_rows: 50, n_cols_min: 700, n: 37, n_threads: 3 };
        let mut all = Operands::new(case, ty);
        all.bias = None;
        for isa in Isa::available() {
            let together = all.product(isa);
            for col in [0, 15, 16, 31, 36] {
                let x = all.x[col * all.stride..][..all.stride].to_vec();
                let case = MatMulCase { n: 1, n_threads: 1, ..case };
                let alone = Operands { case, x, file: all.file.clone(), bias: None, ..all };
                let beside = &together[col * case.n_rows..][..case.n_rows];
                assert_eq!(bits(&alone.product(isa)), bits(beside), "{ty} {} {col}", isa.name());
            }
        }
    }
}

/// What is packed comes out again bit for bit, part by part and as weights, and rows that begin
/// inside a panel are packed from panels as from rows.
#[test]
fn panels_are_taken_apart_into_the_parts_that_made_them() {
    for ty in TensorType::ALL.into_iter().filter(|&ty| needs_acts(ty)) {
        for n_cols_min in [32, 288, 896] {
            let case = MatMulCase { n_rows: 37, n_cols_min, n: 1, n_threads: 1 };
            let operands = Operands::new(case, ty);
            let panels = operands.packed(Isa::best());
            let (n_cols, n_block) = (operands.n_cols, operands.n_cols / 32);
            let panel_bytes = panel_bytes(ty, n_cols);
            let n_bytes = Form::Panels.n_bytes(ty, n_cols as u64, 37);
            assert_eq!(n_bytes, Some(panels.len() as u64));
            for (r, row) in operands.file.chunks(operands.row_bytes()).enumerate() {
                for b in 0..n_block {
                    let got = Form::Panels.part(ty, &panels, n_cols, r, b);
                    assert_eq!(got, part(ty, row, b), "{ty} row {r} block {b}");
                }
                let (mut got, mut expected) = (vec![0.0; n_cols], vec![0.0; n_cols]);
                Form::Panels.read_row(ty, &panels, r, &mut got);
                dequantize(ty, row, &mut expected);
                assert_eq!(bits(&got), bits(&expected), "{ty} row {r}");
            }
            let mut again = vec![0; panel_bytes];
            panel::repack((ty, Form::Panels), &panels, n_cols, 21, 16, &mut again);
            let rows = &operands.file[21 * operands.row_bytes()..][..16 * operands.row_bytes()];
            let mut expected = vec![0; panel_bytes];
            panel::pack(Isa::Scalar, ty, rows, n_block, &mut expected);
            assert!(again == expected, "{ty} from row 21");
        }
    }
}

/// Canary: the comparison sees one code that is off by one, and one lost minimum.
#[test]
fn the_parity_comparison_can_fail() {
    let case = MatMulCase { n_rows: 17, n_cols_min: 512, n: 2, n_threads: 1 };
    for ty in [TensorType::Q4_0, TensorType::Q4_K, TensorType::Q6_K, TensorType::F16] {
        let operands = Operands::new(case, ty);
        let mut broken = Operands::new(case, ty);
        let last = broken.file.len() - if ty == TensorType::Q6_K { 100 } else { 1 };
        broken.file[last] ^= 0x10;
        assert_eq!(operands.mismatch(&operands.product(Isa::Scalar)), None);
        let why = operands.mismatch(&broken.product(Isa::Scalar)).expect("the change is seen");
        assert!(why.starts_with("row 16 "), "{ty}: {why}");
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_code() {
    let x = activations(3, 300, 320, 5);
    let rows = Rows { data: &x, stride: 320, n: 3 };
    for isa in Isa::available() {
        for (per, len) in [(ActScale::Block, 32), (ActScale::Chunk, 256)] {
            let mut acts = Vec::new();
            let mut pool = Pool::new(2).expect("threads start");
            quantize_rows(&mut pool, isa, rows, 300, per, &mut acts);
            for col in 0..3 {
                let row = &x[col * 320..][..300];
                for (k, (got, x)) in rounded(&acts, col, 3, 300).iter().zip(row).enumerate() {
                    let sharers = &row[k / len * len..(k / len * len + len).min(300)];
                    let step = sharers.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                    assert!((got - x).abs() <= step * 0.500_01, "{got} is not {x}, step {step}");
                }
                check_sums(&acts[col]);
                if isa == Isa::Avx2 && per == ActScale::Chunk {
                    check_biased(&acts[col]);
                }
            }
        }
    }
}

fn check_biased(chunk: &ActChunk) {
    for b in 0..8 {
        for (i, &code) in chunk.codes[32 * b..][..32].iter().enumerate() {
            let at = 4 * (i % 16 / 2) + 2 * (i / 16) + i % 2;
            assert_eq!(i32::from(chunk.biased[32 * b + at]), i32::from(code) + 128);
        }
    }
}

fn check_sums(chunk: &ActChunk) {
    let sum = |codes: &[i8]| codes.iter().map(|&c| i32::from(c)).sum::<i32>();
    for b in 0..8 {
        let expected = sum(&chunk.codes[32 * b..][..32]);
        assert_eq!((chunk.neg_sum[b], chunk.neg_sum8[b]), (-expected, -8 * expected));
        assert_eq!(i32::from(chunk.code_sum[b]), expected);
        assert_eq!(chunk.sum[b], chunk.scale[b] * expected as f32);
        for half in [2 * b, 2 * b + 1] {
            let expected = sum(&chunk.codes[16 * half..][..16]);
            assert_eq!(i32::from(chunk.code_sum16[half]), expected);
        }
    }
}
