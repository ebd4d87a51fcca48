//! Float matrices: weight rows as the file has them times activation columns as they are.
//!
//! Decode is bound by memory, and prefill by multiply-adds: widening a weight costs little once a
//! tile of columns shares it. A row's sum runs over eight lanes, then across them, for every tile.

use super::simd::{LANES, Simd};
use crate::inference::quant::{TensorType, dequantize};

/// A float type of the file, as a type.
pub trait Float: Copy {
    /// Which.
    const TYPE: TensorType;

    /// Eight weights from `p`.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

/// F32 weights.
#[derive(Clone, Copy)]
pub struct F32;
/// F16 weights.
#[derive(Clone, Copy)]
pub struct F16;
/// BF16 weights.
#[derive(Clone, Copy)]
pub struct Bf16;

impl Float for F32 {
    const TYPE: TensorType = TensorType::F32;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: passed on; loads need no alignment.
        unsafe { S::load(p.cast()) }
    }
}

impl Float for F16 {
    const TYPE: TensorType = TensorType::F16;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: passed on; loads need no alignment.
        unsafe { S::load_f16(p.cast()) }
    }
}

impl Float for Bf16 {
    const TYPE: TensorType = TensorType::BF16;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: passed on; loads need no alignment.
        unsafe { S::load_bf16(p.cast()) }
    }
}

/// Dot products of `R` rows from `w`, a row being `k` weights, and `C` columns from `x`, `stride`
/// values from one to the next; what follows a column's `k` values is zero up to whole vectors.
///
/// # Safety
/// As [`Simd`]; rows and columns are there.
#[inline(always)]
pub unsafe fn tile<S: Simd, W: Float, const R: usize, const C: usize>(
    w: *const u8,
    k: usize,
    x: *const f32,
    stride: usize,
) -> [[f32; C]; R] {
    let (bytes, whole) = (W::TYPE.block_bytes(), k / LANES * LANES);
    // SAFETY: passed on; `i` stays below `k` in rows, and below `k` rounded up in columns.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        for i in (0..whole).step_by(LANES) {
            let x = load_columns::<S, C>(x.add(i), stride);
            for (r, sums) in sums.iter_mut().enumerate() {
                let w = W::load::<S>(w.add((r * k + i) * bytes));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = S::fma(w, x, *sum);
                }
            }
        }
        if whole < k {
            let x = load_columns::<S, C>(x.add(whole), stride);
            for (r, sums) in sums.iter_mut().enumerate() {
                let rest = w.add((r * k + whole) * bytes);
                let mut padded = [0f32; LANES];
                let rest = std::slice::from_raw_parts(rest, (k - whole) * bytes);
                dequantize(W::TYPE, rest, &mut padded[..k - whole]);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = S::fma(S::load(padded.as_ptr()), x, *sum);
                }
            }
        }
        let mut totals = [[0.0; C]; R];
        for (totals, sums) in totals.iter_mut().zip(sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = S::sum(sum);
            }
        }
        totals
    }
}

/// Eight values of each column.
#[inline(always)]
unsafe fn load_columns<S: Simd, const C: usize>(x: *const f32, stride: usize) -> [S::F; C] {
    // SAFETY: passed on.
    unsafe {
        let mut values = [S::splat(0.0); C];
        for (c, value) in values.iter_mut().enumerate() {
            *value = S::load(x.add(c * stride));
        }
        values
    }
}
