//! The panel kernel: a panel of any type times a tile of activation columns.
//!
//! ```text
//! for each block of 32 weights                       sums stay in registers over the whole row
//!   unpack the codes of the rows, once for the tile
//!   for each column
//!     sum += (codes . acts) * (scale * act scale)    the dot product is an exact integer
//!     sum -= min * (act scale * sum of acts)         where the type has minima
//! ```
//!
//! Nothing is prefetched: a panel is one stream, and asking for its lines ahead of the hardware
//! made decode 10 % slower on one thread (Zen 4, huge pages).
//!
//! A lane is a row, so the order of a row's sum is that of its blocks: the same for one column and
//! for sixteen, on every instruction set.

use super::acts::{ActChunk, BLOCK_LEN};
use super::lanes::{Lanes, unroll};
use super::panel::{Format, GROUP_BLOCKS, Layout, PANEL_ROWS, Scales, VECTOR_BYTES};

/// The sums of rows `row.. row + L::ROWS` of a panel with `C` columns, whose chunks lie side by
/// side from `acts`, `stride` chunks from one 256 weights to the next.
///
/// # Safety
/// As [`Lanes`]; `panel` holds `n_block` blocks, and the chunks are there.
#[inline(always)]
pub unsafe fn tile<L: Lanes, F: Format, const C: usize>(
    panel: *const u8,
    n_block: usize,
    row: usize,
    acts: *const ActChunk,
    stride: usize,
) -> [L::F; C] {
    let layout = F::LAYOUT;
    let has_min = layout.dot.zero_log2.is_none();
    // SAFETY: every address below lies in the panel or in a chunk, as the caller vouches.
    unsafe {
        let mut sums = [L::splat(0.0); C];
        let (mut d, mut dmin) = (sums[0], sums[0]);
        let mut group = panel;
        for group_idx in 0..n_block.div_ceil(GROUP_BLOCKS) {
            let n_block = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
            let codes = group.add(layout.scales_bytes(n_block));
            for b in 0..n_block {
                let head = group.add(b / layout.n_super * layout.super_bytes());
                let b_super = b % layout.n_super;
                if b_super == 0 {
                    d = L::load_f16(head.add(2 * row));
                    if let Some(steps) = layout.steps.filter(|steps| steps.factor_log2 != 0) {
                        d = L::mul(d, L::splat(steps.factor()));
                    }
                    dmin = if has_min { L::load_f16(head.add(2 * (PANEL_ROWS + row))) } else { d };
                }
                let scales = head.add(layout.head_bytes() + b_super * layout.scale_bytes() + row);
                let (scale, min) = unpack_scales::<L>(layout, d, dmin, scales);
                let w = unpack_codes::<L>(layout, codes.add(b * layout.code_bytes() + 4 * row));
                let acts = acts.add(group_idx * stride);
                add_block::<L, C>(layout, &w, scale, min, acts, b, &mut sums);
            }
            group = codes.add(n_block * layout.code_bytes());
        }
        sums
    }
}

/// Adds the products of a block to the sums of each column.
#[inline(always)]
unsafe fn add_block<L: Lanes, const C: usize>(
    layout: Layout,
    w: &[L::I; 8],
    scale: [L::F; 2],
    min: [L::F; 2],
    acts: *const ActChunk,
    block: usize,
    sums: &mut [L::F; C],
) {
    // SAFETY: the caller vouches for the chunks and keeps the rule of `Lanes`.
    unsafe {
        unroll!(C, |c| {
            let a = acts.add(c);
            sums[c] = if matches!(layout.scales, Scales::Two | Scales::TwoMin) {
                add_halves::<L>(layout, w, scale, min, a, block, sums[c])
            } else {
                add_whole::<L>(layout, w, scale[0], min[0], a, block, sums[c])
            };
        });
    }
}

/// Adds the product of a block and a column, where 32 weights share a scale.
#[inline(always)]
unsafe fn add_whole<L: Lanes>(
    layout: Layout,
    w: &[L::I; 8],
    scale: L::F,
    min: L::F,
    a: *const ActChunk,
    block: usize,
    sum: L::F,
) -> L::F {
    // SAFETY: passed on; `block` is below `GROUP_BLOCKS`, so places lie inside the arrays.
    unsafe {
        let codes = (&raw const (*a).codes).cast::<i8>().add(block * BLOCK_LEN);
        let a_scale = L::splat((&raw const (*a).scale).cast::<f32>().add(block).read());
        let neg_sum = (&raw const (*a).neg_sum).cast::<i32>().add(block).read();
        let dot = L::dot(w, codes, neg_sum, layout.dot);
        let sum = L::fma(dot, L::mul(scale, a_scale), sum);
        if layout.dot.zero_log2.is_some() {
            return sum;
        }
        let a_sum = (&raw const (*a).sum).cast::<f32>().add(block).read();
        L::fnma(min, L::splat(a_sum), sum)
    }
}

/// Adds the product of a block and a column, where 16 weights share a scale.
#[inline(always)]
unsafe fn add_halves<L: Lanes>(
    layout: Layout,
    w: &[L::I; 8],
    scale: [L::F; 2],
    min: [L::F; 2],
    a: *const ActChunk,
    block: usize,
    mut sum: L::F,
) -> L::F {
    // SAFETY: as above.
    unsafe {
        let codes = (&raw const (*a).codes).cast::<i8>().add(block * BLOCK_LEN);
        let a_scale = L::splat((&raw const (*a).scale).cast::<f32>().add(block).read());
        for half in 0..2 {
            let at = 2 * block + half;
            let neg_sum = (&raw const (*a).neg_sum16).cast::<i32>().add(at).read();
            let dot = L::dot(&w[4 * half..][..4], codes.add(16 * half), neg_sum, layout.dot);
            sum = L::fma(dot, L::mul(scale[half], a_scale), sum);
            if layout.dot.zero_log2.is_none() {
                let a_sum = (&raw const (*a).sum16).cast::<f32>().add(at).read();
                sum = L::fnma(min[half], L::splat(a_sum), sum);
            }
        }
        sum
    }
}

/// The scales and minima of a block, for its first and second 16 weights.
#[inline(always)]
unsafe fn unpack_scales<L: Lanes>(
    layout: Layout,
    d: L::F,
    dmin: L::F,
    p: *const u8,
) -> ([L::F; 2], [L::F; 2]) {
    // SAFETY: the caller vouches for the bytes of the fields and keeps the rule of `Lanes`.
    unsafe {
        let second = p.add(PANEL_ROWS);
        match layout.scales {
            Scales::Float => ([d; 2], [dmin; 2]),
            Scales::One => ([L::mul(d, L::load_i8(p)); 2], [dmin; 2]),
            Scales::OneMin => {
                let min = L::mul(dmin, L::load_u8(second, 0, 255));
                ([L::mul(d, L::load_u8(p, 0, 255)); 2], [min; 2])
            }
            Scales::Two => ([L::mul(d, L::load_i8(p)), L::mul(d, L::load_i8(second))], [dmin; 2]),
            Scales::TwoMin => {
                let scale = [L::mul(d, L::load_u8(p, 0, 15)), L::mul(d, L::load_u8(second, 0, 15))];
                let (min, next) = (L::load_u8(p, 4, 15), L::load_u8(second, 4, 15));
                (scale, [L::mul(dmin, min), L::mul(dmin, next)])
            }
        }
    }
}

/// The codes of a block, chunk by chunk.
#[inline(always)]
unsafe fn unpack_codes<L: Lanes>(layout: Layout, p: *const u8) -> [L::I; 8] {
    // SAFETY: the caller vouches for the block's vectors and keeps the rule of `Lanes`.
    unsafe {
        let mut codes = [L::load_codes(p); 8];
        for (j, codes) in codes.iter_mut().enumerate() {
            *codes = unpack_chunk::<L>(layout, p, j);
        }
        codes
    }
}

#[inline(always)]
unsafe fn unpack_chunk<L: Lanes>(layout: Layout, p: *const u8, j: usize) -> L::I {
    let (n_low, j_bit) = (layout.low as usize, j as u32);
    // SAFETY: as above.
    unsafe {
        let mut codes = match layout.low {
            8 => L::load_codes(p.add(j * VECTOR_BYTES)),
            4 => L::bits(L::load_codes(p.add(j % 4 * VECTOR_BYTES)), 4, 4 * (j_bit / 4), 0),
            _ => L::bits(L::load_codes(p.add(j % 2 * VECTOR_BYTES)), 2, 2 * (j_bit / 2), 0),
        };
        if layout.high == 1 {
            let high = L::load_codes(p.add(n_low * VECTOR_BYTES));
            codes = L::or(codes, L::bits(high, 1, j_bit, layout.low));
        } else if layout.high == 2 {
            let high = L::load_codes(p.add((n_low + j % 2) * VECTOR_BYTES));
            codes = L::or(codes, L::bits(high, 2, 2 * (j_bit / 2), layout.low));
        }
        match layout.steps {
            Some(steps) => L::steps(codes, &steps.up),
            None => codes,
        }
    }
}
