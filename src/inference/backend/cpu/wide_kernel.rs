//! The wide kernel: two vectors of rows of expanded panels times a tile of activation columns.
//!
//! ```text
//! two vectors   the rows of two panels where a vector has all 16, else the halves of one panel
//! tile          both of them times a few columns, whose sums stay in registers
//! ```
//!
//! Four codes of a column are fetched once for both vectors, and a vector of weights once for all
//! columns, so that fetching does not hold up multiplying. What is summed, and in which order, is
//! what `panel_kernel` does: results are the same bits.

use super::acts::{ActChunk, ActScale, BLOCK_LEN};
use super::expand::{self, Fold, HeadPlan, WIDE_BYTES};
use super::lanes::{WideLanes, unroll};
use super::panel::{Format, GROUP_BLOCKS};
use super::panel_kernel::{chunk_product, rest_of};

/// Bytes from a column to the next.
const ACT_BYTES: usize = size_of::<ActChunk>();

/// Two vectors of rows of expanded panels, or of a group of them.
#[derive(Clone, Copy)]
pub struct Pair {
    /// Their heads.
    pub heads: [*const u8; 2],
    /// Their codes.
    pub codes: [*const u8; 2],
}

impl Pair {
    /// What lies `bytes` further on.
    ///
    /// # Safety
    /// It is there.
    #[inline(always)]
    unsafe fn add(self, bytes: usize) -> Pair {
        let Pair { heads: [h, i], codes: [c, d] } = self;
        // SAFETY: passed on.
        unsafe { Pair { heads: [h.add(bytes), i.add(bytes)], codes: [c.add(bytes), d.add(bytes)] } }
    }

    /// The codes of block `b` of a group.
    ///
    /// # Safety
    /// It is there.
    #[inline(always)]
    unsafe fn block(self, b: usize) -> [*const u8; 2] {
        // SAFETY: passed on.
        unsafe { [self.codes[0].add(b * WIDE_BYTES), self.codes[1].add(b * WIDE_BYTES)] }
    }

    /// Item `i` of what begins `at` bytes into each head.
    ///
    /// # Safety
    /// It is there, aligned.
    #[inline(always)]
    unsafe fn head<T: Copy>(self, at: usize, i: usize) -> [T; 2] {
        // SAFETY: passed on.
        unsafe {
            [
                self.heads[0].add(at).cast::<T>().add(i).read(),
                self.heads[1].add(at).cast::<T>().add(i).read(),
            ]
        }
    }
}

/// The sums of two vectors of rows with `C` columns, whose chunks lie side by side from `acts`,
/// `stride` chunks from one 256 weights to the next, rounded as [`ActScale::of`] says.
///
/// # Safety
/// As [`super::lanes::Lanes`]; panels of `n_block` blocks were expanded for these lanes, and the
/// chunks are there.
#[inline(always)]
pub unsafe fn tile<L: WideLanes, F: Format, const C: usize>(
    pair: Pair,
    n_block: usize,
    (acts, stride): (*const ActChunk, usize),
) -> [[L::F; C]; 2] {
    // SAFETY: every address below lies in a panel or in a chunk, as the caller vouches.
    unsafe {
        let mut sums = [[L::splat(0.0); C]; 2];
        for group_idx in 0..n_block.div_ceil(GROUP_BLOCKS) {
            let n_block = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
            let pair = pair.add(group_idx * expand::group_bytes::<L, F>());
            let acts = acts.add(group_idx * stride);
            match ActScale::of(F::LAYOUT) {
                ActScale::Block => add_blocks::<L, F, C>(pair, n_block, acts, &mut sums),
                ActScale::Chunk => add_chunk::<L, F, C>(pair, n_block, acts, &mut sums),
            }
        }
        sums
    }
}

/// Adds the products of a group whose scales are floats to the sums of each column.
#[inline(always)]
unsafe fn add_blocks<L: WideLanes, F: Format, const C: usize>(
    group: Pair,
    n_block: usize,
    acts: *const ActChunk,
    sums: &mut [[L::F; C]; 2],
) {
    let (layout, plan) = (F::LAYOUT, const { HeadPlan::of::<L, F>() });
    // SAFETY: the caller vouches for group and chunks; `b` is below `GROUP_BLOCKS`, so places lie
    // inside the arrays.
    unsafe {
        for b in 0..n_block {
            let codes = (&raw const (*acts).codes).cast::<i8>().add(b * BLOCK_LEN);
            let neg_sums = (&raw const (*acts).neg_sum).cast::<i32>().add(b);
            let at = (codes, neg_sums, ACT_BYTES);
            let dots = L::dot_pair::<C>(group.block(b), at, layout.dot);
            let d = group.head::<L::F>(0, b);
            unroll!(C, |c| {
                let scale = (&raw const (*acts.add(c)).scale).cast::<f32>().add(b).read();
                let scale = L::splat(scale);
                sums[0][c] = L::fma(dots[0][c], L::mul(d[0], scale), sums[0][c]);
                sums[1][c] = L::fma(dots[1][c], L::mul(d[1], scale), sums[1][c]);
            });
            if layout.dot.zero_log2.is_none() {
                let dmin = group.head::<L::F>(plan.mins, b);
                unroll!(C, |c| {
                    let sum = (&raw const (*acts.add(c)).sum).cast::<f32>().add(b).read();
                    let sum = L::splat(sum);
                    sums[0][c] = L::fnma(dmin[0], sum, sums[0][c]);
                    sums[1][c] = L::fnma(dmin[1], sum, sums[1][c]);
                });
            }
        }
    }
}

/// Adds the products of a group whose scales are integers to the sums of each column.
#[inline(always)]
unsafe fn add_chunk<L: WideLanes, F: Format, const C: usize>(
    group: Pair,
    n_block: usize,
    acts: *const ActChunk,
    sums: &mut [[L::F; C]; 2],
) {
    let (bits, plan) = (F::LAYOUT.dot.bits, const { HeadPlan::of::<L, F>() });
    let fold = if L::FOLDS { Fold::of(F::TYPE) } else { None };
    let is_biased = const { expand::is_biased::<L, F>() };
    // SAFETY: as above.
    unsafe {
        let mut ints = [[L::int(0); C]; 2];
        if let Some(Fold { product_zero, .. }) = fold {
            unroll!(C, |c| {
                let sum = (&raw const (*acts.add(c)).whole_sum).read();
                ints[0][c] = L::int(-i32::from(product_zero) * sum);
                ints[1][c] = ints[0][c];
            });
        }
        if is_biased {
            let base = group.head::<L::N>(plan.base, 0);
            ints = [[base[0]; C], [base[1]; C]];
        }
        for b in 0..n_block {
            let w = group.block(b);
            if is_biased {
                let biased = (&raw const (*acts).biased).cast::<u8>().add(b * BLOCK_LEN);
                let scales = group.head::<L::P>(plan.rests, b);
                L::add_biased::<C>(&mut ints, w, (biased, ACT_BYTES), scales, bits);
                continue;
            }
            let codes = (&raw const (*acts).codes).cast::<i8>().add(b * BLOCK_LEN);
            if fold.is_some() {
                L::add_dots::<C, 8>(&mut ints, w, codes, ACT_BYTES);
                continue;
            }
            let at = (codes, ACT_BYTES);
            let scales = group.head::<L::S>(plan.scales, b * plan.n_scale);
            if expand::is_narrow::<L, F>() {
                let from = match plan.n_center {
                    0 => None,
                    _ => Some((&raw const (*acts).neg_sum8).cast::<i32>().add(b)),
                };
                L::add_narrow::<C>(&mut ints, w, (codes, from, ACT_BYTES), scales);
            } else if plan.n_scale == 1 {
                L::add_scaled_pair::<C, 8>(&mut ints, w, at, scales, bits);
            } else {
                L::add_scaled_pair::<C, 4>(&mut ints, w, at, scales, bits);
                let w = [w[0].add(WIDE_BYTES / 2), w[1].add(WIDE_BYTES / 2)];
                let at = (codes.add(BLOCK_LEN / 2), ACT_BYTES);
                let scales = group.head::<L::S>(plan.scales, 2 * b + 1);
                L::add_scaled_pair::<C, 4>(&mut ints, w, at, scales, bits);
            }
        }
        finish::<L, F, C>(group, acts, &ints, sums);
    }
}

/// Adds what a chunk's integers come to.
#[inline(always)]
unsafe fn finish<L: WideLanes, F: Format, const C: usize>(
    group: Pair,
    acts: *const ActChunk,
    ints: &[[L::N; C]; 2],
    sums: &mut [[L::F; C]; 2],
) {
    let (layout, plan) = (F::LAYOUT, const { HeadPlan::of::<L, F>() });
    let n_rest = if expand::is_biased::<L, F>() { 0 } else { plan.n_rest };
    // SAFETY: as above.
    unsafe {
        let d = group.head::<L::F>(0, 0);
        let dmin = match layout.dot.zero_log2 {
            None => group.head::<L::F>(plan.mins, 0),
            Some(_) => d,
        };
        unroll!(2, |r| {
            let rests = group.heads[r].add(plan.rests).cast::<L::P>();
            let centers = group.heads[r].add(plan.centers).cast::<L::P>();
            unroll!(C, |c| {
                let a = acts.add(c);
                let mut int = ints[r][c];
                if plan.n_center > 0 {
                    // The eights that sums were begun without, under their scales.
                    let centers = rest_of::<L>(layout, centers, plan.n_center, a);
                    int = L::sub_shifted(int, centers, 3);
                }
                let rest = rest_of::<L>(layout, rests, n_rest, a);
                let product = chunk_product::<L>(layout, int, rest, n_rest, [d[r], dmin[r]]);
                let scale = L::splat((&raw const (*a).scale).cast::<f32>().read());
                sums[r][c] = L::fma(product, scale, sums[r][c]);
            });
        });
    }
}
