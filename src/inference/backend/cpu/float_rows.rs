//! Float matrices: weight rows as the file has them times activation columns as they are.
//!
//! Decode is bound by memory, and prefill by multiply-adds: widening a weight costs little once a
//! tile of columns shares it. A row's sum runs over sixteen lanes, then across them, for every tile
//! and every width of register.

use super::lanes::{Lanes, unroll};
use crate::inference::quant::{TensorType, dequantize};

/// Lanes of a row's sum; the columns of a tile are padded to whole multiples.
pub const FLOAT_LANES: usize = 16;

/// A float type of the file, as a type.
pub trait Float: Copy {
    /// Which.
    const TYPE: TensorType;

    /// `L::ROWS` weights from `p`.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F;
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
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: passed on; loads need no alignment.
        unsafe { L::load(p.cast()) }
    }
}

impl Float for F16 {
    const TYPE: TensorType = TensorType::F16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: passed on.
        unsafe { L::load_f16(p) }
    }
}

impl Float for Bf16 {
    const TYPE: TensorType = TensorType::BF16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: passed on.
        unsafe { L::load_bf16(p) }
    }
}

/// Dot products of `R` rows from `w`, a row being `k` weights, and `C` columns from `x`, `stride`
/// values from one to the next; what follows a column's `k` values is zero up to whole vectors.
/// A sum takes `V` registers, `FLOAT_LANES / L::ROWS`.
///
/// # Safety
/// As [`Lanes`]; rows and columns are there.
#[inline(always)]
pub unsafe fn tile<L: Lanes, W: Float, const R: usize, const C: usize, const V: usize>(
    w: *const u8,
    k: usize,
    x: *const f32,
    stride: usize,
) -> [[f32; C]; R] {
    const { assert!(V * L::ROWS == FLOAT_LANES) };
    let (bytes, whole) = (W::TYPE.block_bytes(), k / FLOAT_LANES * FLOAT_LANES);
    // SAFETY: passed on; `i` stays below `k` in rows, and below `k` rounded up in columns.
    unsafe {
        let mut sums = [[[L::splat(0.0); V]; C]; R];
        for i in (0..whole).step_by(FLOAT_LANES) {
            for v in 0..V {
                let i = i + v * L::ROWS;
                let x = load_columns::<L, C>(x.add(i), stride);
                unroll!(R, |r| {
                    let w = W::load::<L>(w.add((r * k + i) * bytes));
                    unroll!(C, |c| {
                        sums[r][c][v] = L::fma(w, x[c], sums[r][c][v]);
                    });
                });
            }
        }
        if whole < k {
            for r in 0..R {
                let rest = w.add((r * k + whole) * bytes);
                let mut padded = [0f32; FLOAT_LANES];
                let rest = std::slice::from_raw_parts(rest, (k - whole) * bytes);
                dequantize(W::TYPE, rest, &mut padded[..k - whole]);
                for v in 0..V {
                    let w = L::load(padded.as_ptr().add(v * L::ROWS));
                    let x = load_columns::<L, C>(x.add(whole + v * L::ROWS), stride);
                    for c in 0..C {
                        sums[r][c][v] = L::fma(w, x[c], sums[r][c][v]);
                    }
                }
            }
        }
        let mut totals = [[0.0; C]; R];
        for r in 0..R {
            for c in 0..C {
                totals[r][c] = total::<L, V>(sums[r][c]);
            }
        }
        totals
    }
}

/// `L::ROWS` values of each column.
#[inline(always)]
unsafe fn load_columns<L: Lanes, const C: usize>(x: *const f32, stride: usize) -> [L::F; C] {
    // SAFETY: passed on.
    unsafe {
        let mut values = [L::splat(0.0); C];
        unroll!(C, |c| {
            values[c] = L::load(x.add(c * stride));
        });
        values
    }
}

/// Sixteen lanes to one number, halves first.
#[inline(always)]
unsafe fn total<L: Lanes, const V: usize>(sum: [L::F; V]) -> f32 {
    let mut l = [0f32; FLOAT_LANES];
    for (v, sum) in sum.into_iter().enumerate() {
        // SAFETY: the array holds `V` vectors; the rest is passed on.
        unsafe { L::store(l.as_mut_ptr().add(v * L::ROWS), sum) };
    }
    let mut n = FLOAT_LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            l[i] += l[i + n];
        }
    }
    l[0]
}
