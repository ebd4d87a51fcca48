//! The panel kernel: a panel of any type times a tile of activation columns.
//!
//! ```text
//! scales are floats: for each block of 32 weights, activations with a scale for each 32
//!   unpack the codes of the rows, once for the tile
//!   for each column
//!     sum += (codes . acts) * (d * act scale)        the dot product is an exact integer
//!     sum -= dmin * (act scale * sum of acts)        where the type has minima
//!
//! scales are integers under a float: for each 8 blocks, activations with a scale for each 256
//!   for each block
//!     unpack the codes of the rows, once for the tile
//!     for each column    int += scale * (codes . acts)
//!   for each column
//!     rest = minima, or scales, . sums of acts       both are exact integers
//!     sum += (d * int - dmin * rest) * act scale     where the type has minima
//!     sum += d * (int - zero * rest) * act scale     where it has a zero
//! ```
//!
//! In the second form a float operation comes once for 256 weights. Its integers fit 32 bits: codes
//! and scales of 6 bits, or of 8 and 6, times 127, 256 times.
//!
//! A lane is a row, so the order of a row's sum is that of its blocks: the same for one column and
//! for sixteen, on every instruction set.

use super::acts::{ActChunk, ActScale, BLOCK_LEN};
use super::ahead::Ahead;
use super::lanes::{Lanes, unroll};
use super::panel::{Format, GROUP_BLOCKS, Layout, PANEL_ROWS, Scales, VECTOR_BYTES};

/// Bytes from a column to the next.
const ACT_BYTES: usize = size_of::<ActChunk>();

/// The sums of rows `row.. row + L::ROWS` of a panel with `C` columns, whose chunks lie side by
/// side from `acts`, `stride` chunks from one 256 weights to the next. They were rounded as
/// [`ActScale::of`] says.
///
/// # Safety
/// As [`Lanes`]; `panel` holds `n_block` blocks, and the chunks are there.
#[inline(always)]
pub unsafe fn tile<L: Lanes, F: Format, const C: usize>(
    panel: *const u8,
    n_block: usize,
    row: usize,
    (acts, stride): (*const ActChunk, usize),
    ahead: Ahead,
) -> [L::F; C] {
    let layout = F::LAYOUT;
    // SAFETY: every address below lies in the panel or in a chunk, as the caller vouches.
    unsafe {
        let mut sums = [L::splat(0.0); C];
        let mut group = panel;
        for group_idx in 0..n_block.div_ceil(GROUP_BLOCKS) {
            let n_block = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
            let acts = acts.add(group_idx * stride);
            let codes = group.add(layout.scales_bytes(n_block));
            let at = Group { scales: group, codes, n_block, row, ahead };
            match ActScale::of(layout) {
                ActScale::Block => add_blocks::<L, F, C>(at, acts, &mut sums),
                ActScale::Chunk => add_chunk::<L, F, C>(at, acts, &mut sums),
            }
            group = codes.add(n_block * layout.code_bytes());
        }
        sums
    }
}

/// Rows `row..` of a group of a panel.
#[derive(Clone, Copy)]
struct Group {
    scales: *const u8,
    codes: *const u8,
    n_block: usize,
    row: usize,
    ahead: Ahead,
}

impl Group {
    /// The codes of block `b`.
    #[inline(always)]
    unsafe fn codes<L: Lanes>(self, layout: Layout, b: usize) -> [L::I; 8] {
        // SAFETY: the caller vouches for the block and keeps the rule of `Lanes`.
        unsafe { unpack_codes::<L>(layout, self.codes.add(b * layout.code_bytes() + 4 * self.row)) }
    }

    /// Asks for codes that come after those of block `b`.
    #[inline(always)]
    fn ask<const C: usize>(self, layout: Layout, b: usize) {
        // The first rows of a panel do it for all.
        if self.row == 0 {
            let codes = self.codes.wrapping_add(b * layout.code_bytes());
            self.ahead.ask::<C>(codes, layout.code_bytes() / VECTOR_BYTES);
        }
    }
}

/// The factor of the scales, times that of the steps.
///
/// # Safety
/// As [`Lanes`]; `p` is that of the first row.
#[inline(always)]
pub unsafe fn load_d<L: Lanes>(layout: Layout, p: *const u8) -> L::F {
    // SAFETY: the caller vouches for the bytes and keeps the rule of `Lanes`.
    unsafe {
        match layout.steps {
            Some(steps) if steps.factor_log2 != 0 => {
                L::mul(L::load_f16(p), L::splat(steps.factor()))
            }
            _ => L::load_f16(p),
        }
    }
}

/// Adds the products of a group whose scales are floats to the sums of each column.
#[inline(always)]
unsafe fn add_blocks<L: Lanes, F: Format, const C: usize>(
    group: Group,
    acts: *const ActChunk,
    sums: &mut [L::F; C],
) {
    let layout = F::LAYOUT;
    let is_centered = layout.dot.zero_log2.is_some();
    // SAFETY: the caller vouches for group and chunks; `b` is below `GROUP_BLOCKS`, so places lie
    // inside the arrays.
    unsafe {
        for b in 0..group.n_block {
            let head = group.scales.add(b * layout.super_bytes() + 2 * group.row);
            let d = load_d::<L>(layout, head);
            let dmin = if is_centered { d } else { L::load_f16(head.add(2 * PANEL_ROWS)) };
            group.ask::<C>(layout, b);
            let w = group.codes::<L>(layout, b);
            unroll!(C, |c| {
                let a = acts.add(c);
                let codes = (&raw const (*a).codes).cast::<i8>().add(b * BLOCK_LEN);
                let scale = L::splat((&raw const (*a).scale).cast::<f32>().add(b).read());
                let neg_sum = (&raw const (*a).neg_sum).cast::<i32>().add(b).read();
                let dot = L::dot(&w, codes, neg_sum, layout.dot);
                sums[c] = L::fma(dot, L::mul(d, scale), sums[c]);
                if !is_centered {
                    let sum = (&raw const (*a).sum).cast::<f32>().add(b).read();
                    sums[c] = L::fnma(dmin, L::splat(sum), sums[c]);
                }
            });
        }
    }
}

/// Adds the products of a group whose scales are integers to the sums of each column.
#[inline(always)]
unsafe fn add_chunk<L: Lanes, F: Format, const C: usize>(
    group: Group,
    acts: *const ActChunk,
    sums: &mut [L::F; C],
) {
    let layout = F::LAYOUT;
    let bits = layout.dot.bits;
    let n_scale = if layout.has_halves() { 2 } else { 1 };
    // SAFETY: as above.
    unsafe {
        let of_rows = group.scales.add(group.row);
        let mut ints = [L::int(0); C];
        for b in 0..group.n_block {
            group.ask::<C>(layout, b);
            let w = group.codes::<L>(layout, b);
            let codes = (&raw const (*acts).codes).cast::<i8>().add(b * BLOCK_LEN);
            let scales = [
                L::scales(scale::<L>(layout, of_rows, b, 0)),
                L::scales(scale::<L>(layout, of_rows, b, n_scale - 1)),
            ];
            if n_scale == 1 {
                L::add_scaled_tile(&mut ints, &w, codes, ACT_BYTES, scales[0], bits);
            } else {
                L::add_scaled_tile(&mut ints, &w[..4], codes, ACT_BYTES, scales[0], bits);
                L::add_scaled_tile(&mut ints, &w[4..], codes.add(16), ACT_BYTES, scales[1], bits);
            }
        }
        let n_rest = n_rest::<L>(layout);
        let rests = rests::<L>(layout, of_rows);
        let d = load_d::<L>(layout, group.scales.add(2 * group.row));
        let dmin = match layout.dot.zero_log2 {
            None => L::load_f16(group.scales.add(2 * (PANEL_ROWS + group.row))),
            Some(_) => d,
        };
        unroll!(C, |c| {
            let a = acts.add(c);
            let rest = rest_of::<L>(layout, rests.as_ptr(), n_rest, a);
            let product = chunk_product::<L>(layout, ints[c], rest, n_rest, [d, dmin]);
            let scale = L::splat((&raw const (*a).scale).cast::<f32>().read());
            sums[c] = L::fma(product, scale, sums[c]);
        });
    }
}

/// The sums of a column's activations, times `n_rest` pairs.
///
/// # Safety
/// As [`Lanes`]; the chunk and the pairs are there.
#[inline(always)]
pub unsafe fn rest_of<L: Lanes>(
    layout: Layout,
    rests: *const L::P,
    n_rest: usize,
    a: *const ActChunk,
) -> L::N {
    // SAFETY: the caller vouches for the chunk and keeps the rule of `Lanes`.
    unsafe {
        let code_sum = match layout.has_halves() {
            false => (&raw const (*a).code_sum).cast::<i16>(),
            true => (&raw const (*a).code_sum16).cast::<i16>(),
        };
        let mut rest = L::int(0);
        unroll!(GROUP_BLOCKS, |i| {
            if i < n_rest {
                rest = L::add_pairs(rest, rests.add(i).read(), code_sum.add(2 * i));
            }
        });
        rest
    }
}

/// What a chunk comes to, but for the scale of its activations: of its scaled dot products, and of
/// the sums times [`rests`].
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub unsafe fn chunk_product<L: Lanes>(
    layout: Layout,
    int: L::N,
    rest: L::N,
    n_rest: usize,
    [d, dmin]: [L::F; 2],
) -> L::F {
    // SAFETY: the caller keeps the rule of `Lanes`.
    unsafe {
        match layout.dot.zero_log2 {
            None => L::fnma(L::to_f32(rest), dmin, L::mul(L::to_f32(int), d)),
            Some(_) if n_rest == 0 => L::mul(L::to_f32(int), d),
            Some(by) => L::mul(L::to_f32(L::sub_shifted(int, rest, by)), d),
        }
    }
}

/// The integer scale of half `i` of block `b` of a group, whose scales of the first row begin at
/// `scales`.
///
/// # Safety
/// As [`Lanes`]; the group's scales are there.
#[inline(always)]
pub unsafe fn scale<L: Lanes>(layout: Layout, scales: *const u8, b: usize, i: usize) -> L::N {
    let at = layout.head_bytes() + b * layout.scale_bytes() + i * PANEL_ROWS;
    // SAFETY: the caller vouches for the block and keeps the rule of `Lanes`.
    unsafe {
        match layout.scales {
            Scales::TwoMin => L::load_u4(scales.add(at), false),
            _ => L::load_i8(scales.add(at)),
        }
    }
}

/// What the sums of the activations are multiplied by, in pairs: minima, or scales where codes have
/// a zero. Blocks past the last of a short group meet sums of zero, whatever stands there.
///
/// # Safety
/// As [`scale`].
#[inline(always)]
pub unsafe fn rests<L: Lanes>(layout: Layout, scales: *const u8) -> [L::P; GROUP_BLOCKS] {
    // SAFETY: as above; the scales of eight blocks are no more bytes than a block with its codes.
    unsafe {
        let mut pairs = [L::pairs(L::int(0), L::int(0)); GROUP_BLOCKS];
        let at = scales.add(layout.head_bytes());
        for (i, pairs) in pairs.iter_mut().enumerate().take(n_rest::<L>(layout)) {
            let (one, two) =
                (at.add(i * layout.scale_bytes()), at.add(2 * i * layout.scale_bytes()));
            *pairs = match layout.scales {
                Scales::Float => L::pairs(L::int(0), L::int(0)),
                Scales::One => L::pairs(L::load_i8(two), L::load_i8(two.add(PANEL_ROWS))),
                Scales::OneMin => {
                    L::pairs(L::load_i8(two.add(PANEL_ROWS)), L::load_i8(two.add(3 * PANEL_ROWS)))
                }
                Scales::Two => L::pairs(L::load_i8(one), L::load_i8(one.add(PANEL_ROWS))),
                Scales::TwoMin => {
                    L::pairs(L::load_u4(one, true), L::load_u4(one.add(PANEL_ROWS), true))
                }
            };
        }
        pairs
    }
}

/// The scales of a group whose blocks have minima, negative and in pairs, as [`rests`].
///
/// # Safety
/// As [`scale`].
#[inline(always)]
pub unsafe fn neg_scale_pairs<L: Lanes>(
    layout: Layout,
    scales: *const u8,
) -> [L::P; GROUP_BLOCKS / 2] {
    // SAFETY: as [`rests`].
    unsafe {
        let zero = L::int(0);
        let mut pairs = [L::pairs(zero, zero); GROUP_BLOCKS / 2];
        for (i, pairs) in pairs.iter_mut().enumerate() {
            let at = scales.add(layout.head_bytes() + 2 * i * layout.scale_bytes());
            let (one, two) = (L::load_i8(at), L::load_i8(at.add(layout.scale_bytes())));
            *pairs = L::pairs(L::sub_shifted(zero, one, 0), L::sub_shifted(zero, two, 0));
        }
        pairs
    }
}

/// Pairs of [`rests`] that count.
#[inline(always)]
pub const fn n_rest<L: Lanes>(layout: Layout) -> usize {
    if layout.dot.zero_log2.is_some() && layout.dot.bits == 8 && L::CENTERS_BYTES {
        0
    } else if layout.has_halves() {
        GROUP_BLOCKS
    } else {
        GROUP_BLOCKS / 2
    }
}

/// The codes of a block, chunk by chunk.
///
/// # Safety
/// As [`Lanes`]; the block's vectors are there.
#[inline(always)]
pub unsafe fn unpack_codes<L: Lanes>(layout: Layout, p: *const u8) -> [L::I; 8] {
    // SAFETY: the caller vouches for the block's vectors and keeps the rule of `Lanes`.
    unsafe {
        let mut codes = [L::load_codes(p); 8];
        for (j, codes) in codes.iter_mut().enumerate() {
            *codes = unpack_chunk::<L>(layout, p, j);
        }
        codes
    }
}

/// Chunk `j` of the block at `p`, a code in each byte.
///
/// # Safety
/// As [`Lanes`]; the block's vectors are there.
#[inline(always)]
pub unsafe fn unpack_chunk<L: Lanes>(layout: Layout, p: *const u8, j: usize) -> L::I {
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
