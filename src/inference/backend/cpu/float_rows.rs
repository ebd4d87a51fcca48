//! Float matrices: weight rows times activation columns as they are. Few columns meet rows as the
//! file has them, many meet rows that were widened to f32.
//!
//! Decode is bound by memory, and prefill by multiply-adds: widening a weight costs little once a
//! tile of columns shares it. A row's sum runs over sixteen lanes, then across them, for every tile
//! and every width of register.

use super::ahead::Ahead;
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

/// Sums of `R` rows with `C` columns, in sixteen lanes each.
pub type Sums<const R: usize, const C: usize> = [[[f32; FLOAT_LANES]; C]; R];

/// Where `R` rows of weights lie, sixteen weights a step.
#[derive(Clone, Copy)]
pub struct Steps {
    /// The first step of the first row.
    pub w: *const u8,
    /// Bytes from a row to the next.
    pub row_bytes: usize,
    /// Bytes from a step to the next.
    pub step_bytes: usize,
    /// Steps.
    pub n: usize,
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
    (x, stride): (*const f32, usize),
    ahead: Ahead,
) -> [[f32; C]; R] {
    let (bytes, n_whole) = (W::TYPE.block_bytes(), k / FLOAT_LANES);
    // SAFETY: passed on; steps stay below `k` in rows, and below `k` rounded up in columns.
    unsafe {
        let mut sums = [[[L::splat(0.0); V]; C]; R];
        let steps = Steps { w, row_bytes: k * bytes, step_bytes: FLOAT_LANES * bytes, n: n_whole };
        // More columns meet rows that are in a cache already, but for the first few of them.
        let ahead = (C == 1).then_some(ahead);
        sums = add_steps::<L, W, R, C, V>(sums, steps, (x, stride), ahead);
        if n_whole * FLOAT_LANES < k {
            let mut rests = [[0f32; FLOAT_LANES]; R];
            for (r, rest) in rests.iter_mut().enumerate() {
                *rest = last_step::<W>(w.add(r * k * bytes), k);
            }
            let w = rests.as_ptr().cast();
            let steps = Steps { w, row_bytes: 4 * FLOAT_LANES, step_bytes: 0, n: 1 };
            let x = x.add(n_whole * FLOAT_LANES);
            sums = add_steps::<L, F32, R, C, V>(sums, steps, (x, stride), None);
        }
        let mut totals = [[0.0; C]; R];
        for r in 0..R {
            for c in 0..C {
                totals[r][c] = total(&put_lanes::<L, V>(sums[r][c]));
            }
        }
        totals
    }
}

/// Adds the products of `steps` widened weights, as [`widen`] has them, to sums that are kept.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub unsafe fn add_tile<L: Lanes, const R: usize, const C: usize, const V: usize>(
    kept: &mut Sums<R, C>,
    steps: Steps,
    x: *const f32,
    stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut sums = [[[L::splat(0.0); V]; C]; R];
        unroll!(R, |r| {
            unroll!(C, |c| {
                for v in 0..V {
                    sums[r][c][v] = L::load(kept[r][c].as_ptr().add(v * L::ROWS));
                }
            });
        });
        sums = add_steps::<L, F32, R, C, V>(sums, steps, (x, stride), None);
        unroll!(R, |r| {
            unroll!(C, |c| {
                kept[r][c] = put_lanes::<L, V>(sums[r][c]);
            });
        });
    }
}

/// Adds products step by step; asks memory for weights to come where it is told to.
#[inline(always)]
unsafe fn add_steps<L: Lanes, W: Float, const R: usize, const C: usize, const V: usize>(
    mut sums: [[[L::F; V]; C]; R],
    steps: Steps,
    (x, stride): (*const f32, usize),
    ahead: Option<Ahead>,
) -> [[[L::F; V]; C]; R] {
    const { assert!(V * L::ROWS == FLOAT_LANES) };
    let bytes = W::TYPE.block_bytes();
    for i in 0..steps.n {
        // SAFETY: the caller vouches for rows and columns.
        unsafe {
            let w = steps.w.add(i * steps.step_bytes);
            if let Some(ahead) = ahead {
                for r in 0..R {
                    ahead.ask::<C>(w.add(r * steps.row_bytes), 1);
                }
            }
            for v in 0..V {
                let x = load_columns::<L, C>(x.add(i * FLOAT_LANES + v * L::ROWS), stride);
                unroll!(R, |r| {
                    let w = W::load::<L>(w.add(r * steps.row_bytes + v * L::ROWS * bytes));
                    unroll!(C, |c| {
                        sums[r][c][v] = L::fma(w, x[c], sums[r][c][v]);
                    });
                });
            }
        }
    }
    sums
}

/// Widens `n_row` rows of `k` weights to f32, step by step: `[step][R][FLOAT_LANES]`. What is not
/// there is zero: the end of a last step, and rows of which there are less than `R`.
///
/// # Safety
/// As [`Lanes`]; the rows are there, and `out` has room.
#[inline(always)]
pub unsafe fn widen<L: Lanes, W: Float, const R: usize>(
    w: *const u8,
    k: usize,
    n_row: usize,
    out: *mut f32,
) {
    let bytes = W::TYPE.block_bytes();
    for r in 0..R {
        for i in 0..k.div_ceil(FLOAT_LANES) {
            // SAFETY: passed on; whole steps lie in the row.
            unsafe {
                let to = out.add((i * R + r) * FLOAT_LANES);
                if r >= n_row {
                    to.write_bytes(0, FLOAT_LANES);
                    continue;
                }
                let row = w.add(r * k * bytes);
                if (i + 1) * FLOAT_LANES > k {
                    to.cast::<[f32; FLOAT_LANES]>().write(last_step::<W>(row, k));
                } else {
                    for at in (0..FLOAT_LANES).step_by(L::ROWS) {
                        let from = row.add((i * FLOAT_LANES + at) * bytes);
                        L::store(to.add(at), W::load::<L>(from));
                    }
                }
            }
        }
    }
}

/// What is left of a row behind its whole steps, and zeros.
///
/// # Safety
/// The row has `k` weights.
unsafe fn last_step<W: Float>(row: *const u8, k: usize) -> [f32; FLOAT_LANES] {
    let bytes = W::TYPE.block_bytes();
    let start = k / FLOAT_LANES * FLOAT_LANES;
    let mut values = [0f32; FLOAT_LANES];
    // SAFETY: passed on.
    let rest = unsafe { std::slice::from_raw_parts(row.add(start * bytes), (k - start) * bytes) };
    dequantize(W::TYPE, rest, &mut values[..k - start]);
    values
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

/// The lanes of a sum.
#[inline(always)]
unsafe fn put_lanes<L: Lanes, const V: usize>(sum: [L::F; V]) -> [f32; FLOAT_LANES] {
    let mut lanes = [0f32; FLOAT_LANES];
    for v in 0..V {
        // SAFETY: the array holds `V` vectors; the rest is passed on.
        unsafe { L::store(lanes.as_mut_ptr().add(v * L::ROWS), sum[v]) };
    }
    lanes
}

/// Sixteen lanes to one number, halves first.
#[inline(always)]
pub fn total(lanes: &[f32; FLOAT_LANES]) -> f32 {
    let (mut eight, mut four) = ([0f32; 8], [0f32; 4]);
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}
