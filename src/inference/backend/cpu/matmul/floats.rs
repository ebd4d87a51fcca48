//! Float matrices: few columns meet rows as the file has them, many meet rows that a task widened.

use super::Job;
use crate::inference::backend::cpu::ahead::Ahead;
use crate::inference::backend::cpu::expand::{self, EXPAND_COLS};
use crate::inference::backend::cpu::float_rows::{self, FLOAT_LANES, Float, Steps, Sums};
use crate::inference::backend::cpu::lanes::{Lanes, unroll};

/// Rows of a tile at most.
pub const ROWS_MAX: usize = 4;
/// Steps of a slice of K: a tile's columns stay in L1 while rows pass.
const SLICE_STEPS: usize = 1024 / FLOAT_LANES;
/// Groups of rows that meet a slice of the columns, whose sums stay in L1 as well.
const N_GROUP: usize = 8;

/// Bytes of a widened row of `k` weights.
pub fn widened_bytes(k: usize) -> usize {
    k.next_multiple_of(FLOAT_LANES) * size_of::<f32>()
}

/// Rows `start..end`, in tiles of up to `R` rows and `C` columns and sums of `V` registers.
///
/// # Safety
/// As a task of [`super::matmul`].
#[inline(always)]
pub unsafe fn task<L: Lanes, W: Float, const R: usize, const C: usize, const V: usize>(
    job: &Job<'_>,
    start: usize,
    end: usize,
) {
    const { assert!(C <= EXPAND_COLS && R <= ROWS_MAX) };
    // SAFETY: passed on.
    unsafe {
        match job.x.n >= EXPAND_COLS {
            true => widened::<L, W, R, C, V>(job, start, end),
            false => as_stored::<L, W, R, C, V>(job, start, end),
        }
    }
}

/// Few columns meet rows as the file has them.
#[inline(always)]
unsafe fn as_stored<L: Lanes, W: Float, const R: usize, const C: usize, const V: usize>(
    job: &Job<'_>,
    start: usize,
    end: usize,
) {
    let mut col = 0;
    while col < job.x.n {
        // SAFETY: passed on. One column reads its rows from memory, which likes few streams, and
        // one if it is asked ahead.
        let done = unsafe {
            match job.x.n - col {
                left if left >= C => columns::<L, W, R, C, V>(job, start, end, col),
                3.. => columns::<L, W, R, 3, V>(job, start, end, col),
                _ if matches!(job.ahead, Ahead::Far(_)) => {
                    columns::<L, W, 1, 1, V>(job, start, end, col)
                }
                _ => columns::<L, W, 2, 1, V>(job, start, end, col),
            }
        };
        col += done;
    }
}

/// Rows `start..end` times `C` columns; returns `C`.
#[inline(always)]
unsafe fn columns<L: Lanes, W: Float, const R: usize, const C: usize, const V: usize>(
    job: &Job<'_>,
    start: usize,
    end: usize,
    col: usize,
) -> usize {
    let (k, stride) = (job.w.n_cols, job.x.stride);
    let mut row = start;
    while row < end {
        // SAFETY: `matmul` asserted that rows and columns are there, with columns padded; this
        // task owns its rows of `out`.
        unsafe {
            let w = job.w.data.as_ptr().add(row * k * W::TYPE.block_bytes());
            let x = (job.x.data.as_ptr().add(col * stride), stride);
            if end - row >= R {
                let sums = float_rows::tile::<L, W, R, C, V>(w, k, x, job.ahead);
                for (r, sums) in sums.iter().enumerate() {
                    job.write(row + r, col, sums);
                }
                row += R;
            } else {
                let [sums] = float_rows::tile::<L, W, 1, C, V>(w, k, x, job.ahead);
                job.write(row, col, &sums);
                row += 1;
            }
        }
    }
    C
}

/// Many columns pass over rows that are widened once, in slices of K.
#[inline(always)]
unsafe fn widened<L: Lanes, W: Float, const R: usize, const C: usize, const V: usize>(
    job: &Job<'_>,
    start: usize,
    end: usize,
) {
    let k = job.w.n_cols;
    let group_bytes = R * widened_bytes(k);
    let n_group = (end - start).div_ceil(R);
    let mut buffer = expand::take_buffer(n_group * group_bytes);
    let wide = buffer.as_mut_ptr().cast::<u8>();
    // SAFETY: `matmul` asserted that rows and columns are there, with columns padded; the buffer
    // has room for all groups.
    unsafe {
        for group_idx in 0..n_group {
            let row = start + group_idx * R;
            let rows = job.w.data.as_ptr().add(row * k * W::TYPE.block_bytes());
            let out = wide.add(group_idx * group_bytes).cast();
            float_rows::widen::<L, W, R>(rows, k, (end - row).min(R), out);
        }
        for tile_idx in 0..job.x.n.div_ceil(C) {
            // The last one ends with the last column: what it shares with the one before comes out
            // the same.
            let col = (tile_idx * C).min(job.x.n - C);
            for first in (0..n_group).step_by(N_GROUP) {
                let n = N_GROUP.min(n_group - first);
                let groups = wide.add(first * group_bytes);
                job.groups::<L, R, C, V>(groups, n, start + first * R, end, col);
            }
        }
    }
    expand::give_back(buffer);
}

impl Job<'_> {
    /// `n` widened groups, the first of which is row `row`, times `C` columns.
    ///
    /// # Safety
    /// As [`float_rows::add_tile`]; no other thread writes these places.
    #[inline(always)]
    unsafe fn groups<L: Lanes, const R: usize, const C: usize, const V: usize>(
        &self,
        groups: *const u8,
        n: usize,
        row: usize,
        end: usize,
        col: usize,
    ) {
        let n_step = self.w.n_cols.div_ceil(FLOAT_LANES);
        let (row_bytes, step_bytes) = (4 * FLOAT_LANES, 4 * FLOAT_LANES * R);
        let mut sums: [Sums<R, C>; N_GROUP] = [[[[0.0; FLOAT_LANES]; C]; R]; N_GROUP];
        // SAFETY: passed on.
        unsafe {
            for step in (0..n_step).step_by(SLICE_STEPS) {
                let x = self.x.data.as_ptr().add(col * self.x.stride + step * FLOAT_LANES);
                for (i, sums) in sums.iter_mut().enumerate().take(n) {
                    let w = groups.add((i * n_step + step) * step_bytes);
                    let n = SLICE_STEPS.min(n_step - step);
                    let steps = Steps { w, row_bytes, step_bytes, n };
                    float_rows::add_tile::<L, R, C, V>(sums, steps, x, self.x.stride);
                }
            }
            for (row, sums) in (row..end).zip(sums.as_flattened()) {
                let mut totals = [0.0; C];
                unroll!(C, |c| {
                    totals[c] = float_rows::total(&sums[c]);
                });
                self.write(row, col, &totals);
            }
        }
    }

    /// # Safety
    /// No other thread writes these places.
    #[inline(always)]
    unsafe fn write(&self, row: usize, col: usize, sums: &[f32]) {
        for (c, sum) in sums.iter().enumerate() {
            let sum = self.bias.map_or(*sum, |bias| sum + bias[row]);
            // SAFETY: the caller owns this place.
            unsafe { self.out.write((col + c) * self.out_stride + row, sum) };
        }
    }
}
