//! Operations on one row at a time: norms, activations, rotary embedding, sums.
//!
//! Plain loops over eight partial sums, which compile to vectors inside [`with_isa`]; a row is
//! worked on by one thread, so the order of its sums never depends on the batch.

use super::isa::{Isa, with_isa};
use super::math;
use super::simd::{LANES, Scalar};
use crate::inference::backend::{Activation, NormKind, RopeStyle};

/// What is done to a row.
#[derive(Clone, Copy)]
pub enum RowOp<'a> {
    /// Each run of `width` values to unit size, times `weight`, plus `bias`.
    Norm {
        /// Formula.
        kind: NormKind,
        /// Added to the variance.
        eps: f32,
        /// Values normalised together.
        width: usize,
        /// `[width]`, or as many runs of that as the row has.
        weight: &'a [f32],
        /// `[width]`
        bias: Option<&'a [f32]>,
    },
    /// `activation(x)`
    Act(Activation),
    /// `activation(x) * up`
    Glu(Activation, &'a [f32]),
    /// `x + y`
    Add(&'a [f32]),
    /// `x * factor`
    Scale(f32),
    /// Turns each head by the angles `[n_rot / 2]` of (cos, sin).
    Rope {
        /// Pairing.
        style: RopeStyle,
        /// Cosine and sine of each pair.
        angles: &'a [(f32, f32)],
        /// Width of a head.
        head_dim: usize,
    },
}

/// Does `op` to `row` in place.
///
/// # Safety
/// `isa` comes from [`Isa::available`].
pub unsafe fn apply(isa: Isa, row: &mut [f32], op: RowOp<'_>) {
    // SAFETY: passed on.
    unsafe { with_isa!(isa, apply_with(row: &mut [f32], op: RowOp<'_>)) }
}

#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)] // `with_isa` names the set that it enables
unsafe fn apply_with<S>(row: &mut [f32], op: RowOp<'_>) {
    match op {
        RowOp::Norm { kind, eps, width, weight, bias } => {
            let weights = weight.chunks_exact(width).cycle();
            for (run, weight) in row.chunks_exact_mut(width).zip(weights) {
                norm(run, kind, eps, weight, bias);
            }
        }
        RowOp::Act(Activation::Silu) => row.iter_mut().for_each(|x| *x = math::silu(*x)),
        RowOp::Act(Activation::Gelu) => row.iter_mut().for_each(|x| *x = math::gelu(*x)),
        RowOp::Act(Activation::Tanh) => row.iter_mut().for_each(|x| *x = math::tanh(*x)),
        RowOp::Glu(Activation::Silu, up) => {
            row.iter_mut().zip(up).for_each(|(x, u)| *x = math::silu(*x) * u);
        }
        RowOp::Glu(Activation::Gelu, up) => {
            row.iter_mut().zip(up).for_each(|(x, u)| *x = math::gelu(*x) * u);
        }
        RowOp::Glu(Activation::Tanh, up) => {
            row.iter_mut().zip(up).for_each(|(x, u)| *x = math::tanh(*x) * u);
        }
        RowOp::Add(y) => row.iter_mut().zip(y).for_each(|(x, y)| *x += y),
        RowOp::Scale(factor) => row.iter_mut().for_each(|x| *x *= factor),
        RowOp::Rope { style, angles, head_dim } => {
            for head in row.chunks_exact_mut(head_dim) {
                rope(head, style, angles);
            }
        }
    }
}

#[inline(always)]
fn norm(row: &mut [f32], kind: NormKind, eps: f32, weight: &[f32], bias: Option<&[f32]>) {
    let n = row.len() as f32;
    if kind == NormKind::Layer {
        let mean = sum(row, |x| x) / n;
        row.iter_mut().for_each(|x| *x -= mean);
    }
    let scale = 1.0 / (sum(row, |x| x * x) / n + eps).sqrt();
    row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for j in 0..LANES {
            lanes[j] += f(x[j]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    lanes.iter().sum()
}

#[inline(always)]
fn rope(head: &mut [f32], style: RopeStyle, angles: &[(f32, f32)]) {
    let n = angles.len();
    match style {
        RopeStyle::Pairs => {
            for (pair, &(cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
        RopeStyle::Halves => {
            let (low, high) = head[..2 * n].split_at_mut(n);
            for i in 0..n {
                let ((a, b), (cos, sin)) = ((low[i], high[i]), angles[i]);
                low[i] = a * cos - b * sin;
                high[i] = a * sin + b * cos;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect()
    }

    fn run(isa: Isa, n: usize, op: RowOp<'_>) -> Vec<f32> {
        let mut x = row(n);
        // SAFETY: the set comes from `available`.
        unsafe { apply(isa, &mut x, op) };
        x
    }

    #[test]
    fn norms_give_zero_mean_and_unit_size() {
        let (weight, bias) = (vec![2.0; 61], vec![0.5; 61]);
        let op = RowOp::Norm {
            kind: NormKind::Layer,
            eps: 0.0,
            width: 61,
            weight: &weight,
            bias: Some(&bias),
        };
        let x = run(Isa::Scalar, 61, op);
        let mean = x.iter().sum::<f32>() / 61.0;
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / 61.0;
        assert!((mean - 0.5).abs() < 1e-5 && (var - 4.0).abs() < 1e-4);
        let op =
            RowOp::Norm { kind: NormKind::Rms, eps: 0.0, width: 61, weight: &weight, bias: None };
        let x = run(Isa::Scalar, 61, op);
        assert!((x.iter().map(|v| v * v).sum::<f32>() / 61.0 - 4.0).abs() < 1e-4);
    }

    #[test]
    fn rope_keeps_lengths_and_turns_by_the_angle() {
        let angles = [(0.6f32, 0.8f32), (1.0, 0.0)];
        for style in [RopeStyle::Pairs, RopeStyle::Halves] {
            let mut x = vec![1.0, 2.0, 3.0, 4.0, 9.0];
            // SAFETY: plain Rust is always available.
            unsafe {
                apply(Isa::Scalar, &mut x, RowOp::Rope { style, angles: &angles, head_dim: 5 })
            };
            let expected = match style {
                RopeStyle::Pairs => [0.6 - 1.6, 0.8 + 1.2, 3.0, 4.0, 9.0],
                RopeStyle::Halves => [0.6 - 2.4, 2.0, 0.8 + 1.8, 4.0, 9.0],
            };
            for (got, expected) in x.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn every_instruction_set_agrees_with_the_scalar_twin() {
        let (y, weight) = (row(333), row(37));
        let ops = [
            RowOp::Act(Activation::Silu),
            RowOp::Act(Activation::Gelu),
            RowOp::Act(Activation::Tanh),
            RowOp::Glu(Activation::Silu, &y),
            RowOp::Add(&y),
            RowOp::Norm { kind: NormKind::Rms, eps: 1e-5, width: 37, weight: &weight, bias: None },
            RowOp::Norm {
                kind: NormKind::Layer,
                eps: 1e-5,
                width: 37,
                weight: &weight,
                bias: Some(&y[..37]),
            },
        ];
        for isa in Isa::available() {
            for op in ops {
                // No fused operation is left to the compiler here, so bits are equal.
                assert_eq!(run(isa, 333, op), run(Isa::Scalar, 333, op), "{}", isa.name());
            }
        }
    }
}
