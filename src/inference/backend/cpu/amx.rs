//! Many columns on AMX: one instruction multiplies 16 columns, 16 rows and 64 weights.
//!
//! ```text
//! expanded   groups of 8 blocks, all equally long
//! group      Head: factors as f32, minima in pairs
//!            planes: codes of its blocks, 512 bytes each, as `expand` has them, but signed
//! tiles      tmm0 .. tmm3  sums [column][row] of two column tiles times two panels
//!            tmm4, tmm5    activations [column][64 codes], where they lie
//!            tmm6, tmm7    weights [16 vectors][row][4 codes], where they lie
//! ```
//!
//! The tiles are left for what they cannot do, multiply by scales, as seldom as the types allow.
//! Where scales are integers under a float they are multiplied into the codes: 256 weights then
//! need nothing between them. Products of more bits than a byte has are two planes, which costs
//! half of the tiles' rate and is still several times what vectors do: `128 * high + low` of a
//! product, or codes times the high and the low bits of their scale. Where scales are
//! floats the tiles are left for each 32 weights, which then are half as deep.
//!
//! Up to 32 columns ([`few`]) take panels a group at a time, the two planes of a group in place of
//! two panels; more pass over all panels of a task ([`multiply`]).
//!
//! Integers are exact and floats are added in the order of `panel_kernel`, so the sums have the
//! same bits as those of every other instruction set.

pub mod few;
mod form;
mod tiles;

use super::acts::{ActChunk, ActScale, BLOCK_LEN};
use super::expand::WIDE_BYTES;
use super::lanes::{Lanes, unroll};
use super::lanes_x86::Avx512Lanes;
use super::panel::{GROUP_BLOCKS, PANEL_ROWS, VECTOR_BYTES};
use form::Head;
pub use form::{Form, expand};
use std::arch::x86_64::*;
use tiles::add_tiles;
pub use tiles::{Tiles, is_there, peak};

/// Columns of a tile.
pub const TILE_COLS: usize = 16;
/// Columns and panels of [`multiply`], in tiles.
pub const TILES: usize = 2;
/// Bytes of a plane of a group.
const PLANE_BYTES: usize = GROUP_BLOCKS * WIDE_BYTES;
/// Bytes of what a tile of sums stores.
const TILE_BYTES: usize = TILE_COLS * VECTOR_BYTES;
/// Blocks whose sums are stored before they are scaled, where scales are floats.
const N_STORED: usize = 4;

/// Bytes of the longest expanded panel of `n_block` blocks: one in two planes.
pub const fn panel_bytes_max(n_block: usize) -> usize {
    n_block.div_ceil(GROUP_BLOCKS) * (size_of::<Head>() + 2 * PLANE_BYTES)
}

/// Sums of two column tiles with two panels: `[tile of columns * 2 + panel][column][row]`.
pub type Sums = [[[f32; PANEL_ROWS]; TILE_COLS]; TILES * TILES];
/// The same as the tiles store them.
type Ints = [[[i32; PANEL_ROWS]; TILE_COLS]; TILES * TILES];

/// Where integers are stored, and sums of floats.
#[repr(C, align(64))]
pub struct Scratch {
    ints: [Ints; N_STORED],
    /// The result of [`multiply`].
    pub sums: Sums,
}

impl Scratch {
    /// Zeros.
    pub const ZERO: Scratch = Scratch {
        ints: [[[[0; PANEL_ROWS]; TILE_COLS]; TILES * TILES]; N_STORED],
        sums: [[[0.0; PANEL_ROWS]; TILE_COLS]; TILES * TILES],
    };
}

/// Two tiles of columns and two panels; one may stand twice.
#[derive(Clone, Copy)]
pub struct Block {
    /// Expanded panels.
    pub panels: [*const u8; TILES],
    /// Blocks of a row.
    pub n_block: usize,
    /// The first chunks of the columns, which lie side by side.
    pub acts: [*const ActChunk; TILES],
    /// Chunks from one 256 weights to the next.
    pub stride: usize,
    /// Columns of each tile.
    pub n: [usize; TILES],
}

/// Multiplies into `scratch.sums`.
///
/// # Safety
/// AVX-512 is enabled and the tiles have the shape of `form` and `block.n`; panels and chunks are
/// there.
#[inline(always)]
pub unsafe fn multiply(form: Form, block: &Block, scratch: &mut Scratch) {
    scratch.sums = Scratch::ZERO.sums;
    // SAFETY: passed on.
    unsafe {
        match form.scales {
            ActScale::Block => by_blocks(form, block, scratch),
            ActScale::Chunk => by_chunks(form, block, scratch),
        }
    }
}

/// A group of a block of tiles.
struct Group<'a> {
    heads: [&'a Head; TILES],
    codes: [*const u8; TILES],
    acts: [*const ActChunk; TILES],
    n_block: usize,
}

impl Block {
    /// Group `group_idx`.
    #[inline(always)]
    unsafe fn group(&self, form: Form, group_idx: usize) -> Group<'_> {
        let n_block = (self.n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
        // SAFETY: the caller vouches for panels and chunks.
        unsafe {
            let [one, two] = self.panels.map(|panel| panel.add(group_idx * form.group_bytes()));
            let heads = [&*one.cast::<Head>(), &*two.cast::<Head>()];
            let codes = [one.add(size_of::<Head>()), two.add(size_of::<Head>())];
            let acts = self.acts.map(|acts| acts.add(group_idx * self.stride));
            Group { heads, codes, acts, n_block }
        }
    }
}

/// Where scales are integers.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
unsafe fn by_chunks(form: Form, block: &Block, scratch: &mut Scratch) {
    for group_idx in 0..block.n_block.div_ceil(GROUP_BLOCKS) {
        // SAFETY: passed on; planes lie behind each other.
        unsafe {
            let group = block.group(form, group_idx);
            for plane in 0..form.n_plane {
                let codes = group.codes.map(|codes| codes.add(plane * PLANE_BYTES));
                let acts = group.acts.map(|acts| acts.cast::<i8>());
                add_tiles(acts, codes, group.n_block.div_ceil(2), &mut scratch.ints[plane]);
            }
            for tile in 0..TILES * TILES {
                let (acts, head) = (group.acts[tile / TILES], group.heads[tile % TILES]);
                let ints = [&scratch.ints[0][tile][..], &scratch.ints[form.n_plane - 1][tile][..]];
                let sums = &mut scratch.sums[tile][..block.n[tile / TILES]];
                scale_columns(form, head, acts, ints, sums);
            }
        }
    }
}

/// `sums[column] += scaled ints[column]`, as `panel_kernel::add_chunk` ends.
#[inline(always)]
unsafe fn scale_columns(
    form: Form,
    head: &Head,
    acts: *const ActChunk,
    ints: [&[[i32; PANEL_ROWS]]; 2],
    sums: &mut [[f32; PANEL_ROWS]],
) {
    // SAFETY: passed on.
    unsafe {
        match (form.n_plane, form.n_rest) {
            (1, 0) => scale_chunk::<1, 0>(form, head, acts, ints, sums),
            (1, _) => scale_chunk::<1, GROUP_BLOCKS>(form, head, acts, ints, sums),
            (_, 0) => scale_chunk::<2, 0>(form, head, acts, ints, sums),
            _ => scale_chunk::<2, { GROUP_BLOCKS / 2 }>(form, head, acts, ints, sums),
        }
    }
}

/// [`scale_columns`] of `PLANES` planes and `RESTS` pairs of minima.
#[inline(always)]
unsafe fn scale_chunk<const PLANES: usize, const RESTS: usize>(
    form: Form,
    head: &Head,
    acts: *const ActChunk,
    ints: [&[[i32; PANEL_ROWS]]; 2],
    sums: &mut [[f32; PANEL_ROWS]],
) {
    type L = Avx512Lanes;
    // SAFETY: the caller vouches for the columns and enabled AVX-512.
    unsafe {
        let (d, dmin) = (L::load(head.d[0].as_ptr()), L::load(head.dmin[0].as_ptr()));
        let mut rests = [L::int(0); GROUP_BLOCKS];
        unroll!(GROUP_BLOCKS, |i| {
            rests[i] = _mm512_load_si512(head.rests[i].as_ptr().cast());
        });
        for (c, sum) in sums.iter_mut().enumerate() {
            let act = acts.add(c);
            let mut int = _mm512_load_si512(ints[0][c].as_ptr().cast());
            if PLANES == 2 {
                let low = _mm512_load_si512(ints[1][c].as_ptr().cast());
                let by = _mm_cvtsi32_si128(form.low_bits.cast_signed());
                int = _mm512_add_epi32(_mm512_sll_epi32(int, by), low);
            } else {
                let whole = (&raw const (*act).whole_sum).read();
                int = _mm512_add_epi32(int, L::int(form.bias * whole));
            }
            let mut product = L::mul(L::to_f32(int), d);
            if RESTS > 0 {
                let code_sum = match form.has_halves {
                    false => (&raw const (*act).code_sum).cast::<i16>(),
                    true => (&raw const (*act).code_sum16).cast::<i16>(),
                };
                let mut rest = L::int(0);
                unroll!(GROUP_BLOCKS, |i| {
                    if i < RESTS {
                        rest = L::add_pairs(rest, rests[i], code_sum.add(2 * i));
                    }
                });
                product = L::fnma(L::to_f32(rest), dmin, product);
            }
            let scale = L::splat((&raw const (*act).scale).cast::<f32>().read());
            L::store(sum.as_mut_ptr(), L::fma(product, scale, L::load(sum.as_ptr())));
        }
    }
}

/// Where scales are floats.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
unsafe fn by_blocks(form: Form, block: &Block, scratch: &mut Scratch) {
    for group_idx in 0..block.n_block.div_ceil(GROUP_BLOCKS) {
        // SAFETY: passed on; `b` is below `GROUP_BLOCKS`.
        unsafe {
            let group = block.group(form, group_idx);
            for first in (0..group.n_block).step_by(N_STORED) {
                let n_block = (group.n_block - first).min(N_STORED);
                for b in 0..n_block {
                    let codes = group.codes.map(|codes| codes.add((first + b) * WIDE_BYTES));
                    let acts =
                        group.acts.map(|acts| acts.cast::<i8>().add((first + b) * BLOCK_LEN));
                    add_tiles(acts, codes, 1, &mut scratch.ints[b]);
                }
                for tile in 0..TILES * TILES {
                    let (acts, head) = (group.acts[tile / TILES], group.heads[tile % TILES]);
                    let (ints, n) = (&scratch.ints[..n_block], block.n[tile / TILES]);
                    let sums = &mut scratch.sums[tile][..n];
                    if form.has_min {
                        scale_blocks::<true>(head, acts, first, ints, tile, sums);
                    } else {
                        scale_blocks::<false>(head, acts, first, ints, tile, sums);
                    }
                }
            }
        }
    }
}

/// `sums[column] += scaled ints[block][tile][column]`, as `panel_kernel::add_blocks` does.
#[inline(always)]
unsafe fn scale_blocks<const MIN: bool>(
    head: &Head,
    acts: *const ActChunk,
    first: usize,
    ints: &[Ints],
    tile: usize,
    sums: &mut [[f32; PANEL_ROWS]],
) {
    type L = Avx512Lanes;
    // SAFETY: the caller vouches for the columns and enabled AVX-512.
    unsafe {
        for (c, out) in sums.iter_mut().enumerate() {
            let act = acts.add(c);
            let mut sum = L::load(out.as_ptr());
            for (b, ints) in ints.iter().enumerate() {
                let dot = L::to_f32(_mm512_load_si512(ints[tile][c].as_ptr().cast()));
                let scale = (&raw const (*act).scale).cast::<f32>().add(first + b).read();
                let d = L::load(head.d[first + b].as_ptr());
                sum = L::fma(dot, L::mul(d, L::splat(scale)), sum);
                if MIN {
                    let of_acts = (&raw const (*act).sum).cast::<f32>().add(first + b).read();
                    let dmin = L::load(head.dmin[first + b].as_ptr());
                    sum = L::fnma(dmin, L::splat(of_acts), sum);
                }
            }
            L::store(out.as_mut_ptr(), sum);
        }
    }
}
