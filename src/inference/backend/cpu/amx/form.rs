//! What the tiles multiply of a panel, and how it comes from one.

use super::{PLANE_BYTES, TILE_COLS};
use crate::inference::backend::cpu::acts::ActScale;
use crate::inference::backend::cpu::ahead::Ahead;
use crate::inference::backend::cpu::expand::{Fold, WIDE_BYTES};
use crate::inference::backend::cpu::lanes::{Lanes, unroll};
use crate::inference::backend::cpu::lanes_x86::Avx512Lanes;
use crate::inference::backend::cpu::panel::{
    Format, GROUP_BLOCKS, Layout, PANEL_ROWS, Scales, VECTOR_BYTES,
};
use crate::inference::backend::cpu::panel_kernel::{load_d, n_rest, rests, scale, unpack_chunk};
use std::arch::x86_64::*;

/// Factors of a group of a panel, a lane for each row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Head {
    /// Of each block where scales are floats; else the first is that of the group.
    pub d: [[f32; PANEL_ROWS]; GROUP_BLOCKS],
    /// The same for minima.
    pub dmin: [[f32; PANEL_ROWS]; GROUP_BLOCKS],
    /// Integer minima, two i16 in a lane.
    pub rests: [[i32; PANEL_ROWS]; GROUP_BLOCKS],
}

/// What the tiles multiply of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub scales: ActScale,
    pub has_min: bool,
    pub has_halves: bool,
    pub n_plane: usize,
    /// Pairs of integer minima.
    pub n_rest: usize,
    /// What was taken from each product, so that it fits a byte.
    pub bias: i32,
    /// Bits of what the low plane has: of products, or of scales where [`splits_scales`].
    pub low_bits: u32,
}

impl Form {
    /// That of a type.
    pub const fn of<F: Format>() -> Form {
        let layout = F::LAYOUT;
        let has_min = layout.dot.zero_log2.is_none();
        let scales = ActScale::of(layout);
        let (n_plane, bias) = match (scales, Fold::of(F::TYPE)) {
            (ActScale::Block, _) => (1, 0),
            (_, Some(fold)) if has_min => (1, -(fold.product_zero as i32)),
            (_, Some(fold)) => (1, 128 - fold.product_zero as i32),
            (_, None) => (2, 0),
        };
        let n_rest = match scales {
            ActScale::Chunk if has_min => n_rest::<Avx512Lanes>(layout),
            _ => 0,
        };
        let low_bits = if splits_scales(layout) { SCALE_BITS / 2 } else { LOW_BITS };
        Form { scales, has_min, has_halves: layout.has_halves(), n_plane, n_rest, bias, low_bits }
    }

    /// Bytes of an expanded group.
    pub const fn group_bytes(self) -> usize {
        size_of::<Head>() + self.n_plane * PLANE_BYTES
    }

    /// Bytes of an expanded panel of `n_block` blocks.
    pub const fn panel_bytes(self, n_block: usize) -> usize {
        n_block.div_ceil(GROUP_BLOCKS) * self.group_bytes()
    }
}

/// Bits of the low plane of a product.
const LOW_BITS: u32 = 7;
/// Bits of a scale that stands beside a minimum. A native file that has more gives other numbers.
const SCALE_BITS: u32 = 6;

/// Whether a plane is codes times half of the bits of their scale: each fits a byte, so that one
/// multiplication of 16 bits makes two of them.
const fn splits_scales(layout: Layout) -> bool {
    matches!(layout.scales, Scales::OneMin) && layout.dot.bits <= 4
}

/// Writes a panel of `n_block` blocks to `out`, [`Form::panel_bytes`] of them.
///
/// # Safety
/// AVX-512 is enabled; panel and `out` have their bytes, and `out` is aligned to a cache line.
#[inline(always)]
pub unsafe fn expand<F: Format>(panel: *const u8, n_block: usize, out: *mut u8, ahead: Ahead) {
    let (layout, form) = (F::LAYOUT, const { Form::of::<F>() });
    let mut group = panel;
    for group_idx in 0..n_block.div_ceil(GROUP_BLOCKS) {
        let n_block = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
        // SAFETY: every address lies in the panel or in `out`, as the caller vouches.
        unsafe {
            let out = out.add(group_idx * form.group_bytes());
            put_head(layout, form, group, n_block, &mut *out.cast::<Head>());
            let n_ask = layout.group_bytes(n_block) / VECTOR_BYTES / n_block;
            put_planes::<F>(group, n_block, out.add(size_of::<Head>()), ahead, n_ask);
            group = group.add(layout.group_bytes(n_block));
        }
    }
}

/// Writes the planes of a group of `n_block` blocks.
///
/// # Safety
/// As [`expand`].
#[inline(always)]
pub unsafe fn put_planes<F: Format>(
    group: *const u8,
    n_block: usize,
    out: *mut u8,
    ahead: Ahead,
    n_ask: usize,
) {
    let (layout, form) = (F::LAYOUT, const { Form::of::<F>() });
    // SAFETY: passed on.
    unsafe {
        let codes = group.add(layout.scales_bytes(n_block));
        for b in 0..n_block {
            let (from, to) = (codes.add(b * layout.code_bytes()), out.add(b * WIDE_BYTES));
            ahead.ask::<TILE_COLS>(group.wrapping_add(b * n_ask * VECTOR_BYTES), n_ask);
            match form.scales {
                ActScale::Block => put_codes(layout, from, to),
                ActScale::Chunk if const { splits_scales(F::LAYOUT) } => {
                    put_halves(layout, group, b, from, to);
                }
                ActScale::Chunk => put_products(layout, form, group, b, from, to),
            }
        }
        // Tiles take blocks in pairs.
        if form.scales == ActScale::Chunk && n_block % 2 == 1 {
            for plane in 0..form.n_plane {
                out.add(plane * PLANE_BYTES + n_block * WIDE_BYTES).write_bytes(0, WIDE_BYTES);
            }
        }
    }
}

/// Writes the factors of a group of `n_block` blocks.
///
/// # Safety
/// AVX-512 is enabled; the group's scales are there.
#[inline(always)]
pub unsafe fn put_head(
    layout: Layout,
    form: Form,
    group: *const u8,
    n_block: usize,
    head: &mut Head,
) {
    type L = Avx512Lanes;
    let n_factor = match form.scales {
        ActScale::Block => n_block,
        ActScale::Chunk => 1,
    };
    // SAFETY: the caller vouches for the group's scales.
    unsafe {
        for b in 0..n_factor {
            let at = group.add(b * layout.super_bytes());
            L::store(head.d[b].as_mut_ptr(), load_d::<L>(layout, at));
            if form.has_min {
                L::store(head.dmin[b].as_mut_ptr(), L::load_f16(at.add(2 * PANEL_ROWS)));
            }
        }
        if form.n_rest > 0 {
            let pairs = rests::<L>(layout, group);
            for (rest, pair) in head.rests.iter_mut().zip(pairs) {
                _mm512_store_si512(rest.as_mut_ptr().cast(), pair);
            }
        }
    }
}

/// The codes of a block, less their zero.
#[inline(always)]
unsafe fn put_codes(layout: Layout, codes: *const u8, out: *mut u8) {
    let zero = layout.dot.zero_log2.map_or(0, |log2| 1u8 << log2);
    // SAFETY: the caller vouches for the block and its place.
    unsafe {
        let zero = _mm512_set1_epi8(zero.cast_signed());
        for j in 0..8 {
            let codes = _mm512_sub_epi8(unpack_chunk::<Avx512Lanes>(layout, codes, j), zero);
            _mm512_store_si512(out.add(j * VECTOR_BYTES).cast(), codes);
        }
    }
}

/// The codes of block `b` times the high bits of their scale, and times the low ones, in planes.
#[inline(always)]
unsafe fn put_halves(layout: Layout, group: *const u8, b: usize, codes: *const u8, out: *mut u8) {
    type L = Avx512Lanes;
    const HALF: u32 = SCALE_BITS / 2;
    // SAFETY: the caller vouches for the group, the block and its place.
    unsafe {
        let scales = scale::<L>(layout, group, b, 0);
        let pairs = L::pairs(scales, scales);
        let high = _mm512_srli_epi16::<HALF>(pairs);
        let low = _mm512_and_si512(pairs, _mm512_set1_epi16((1 << HALF) - 1));
        unroll!(8, |j| {
            let codes = unpack_chunk::<L>(layout, codes, j);
            let out = out.add(j * VECTOR_BYTES).cast::<__m512i>();
            // Two codes at a time: neither product carries.
            _mm512_store_si512(out, _mm512_mullo_epi16(codes, high));
            _mm512_store_si512(out.byte_add(PLANE_BYTES), _mm512_mullo_epi16(codes, low));
        });
    }
}

/// The codes of block `b`, less their zero, times their scales, in planes.
#[inline(always)]
unsafe fn put_products(
    layout: Layout,
    form: Form,
    group: *const u8,
    b: usize,
    codes: *const u8,
    out: *mut u8,
) {
    type L = Avx512Lanes;
    let zero = layout.dot.zero_log2.map_or(0, |log2| 1i16 << log2);
    // SAFETY: the caller vouches for the group, the block and its place.
    unsafe {
        let zero = _mm512_set1_epi16(zero);
        let bias = _mm512_set1_epi16(form.bias as i16);
        let low = _mm512_set1_epi16((1 << LOW_BITS) - 1);
        for half in 0..2 {
            let i = if form.has_halves { half } else { 0 };
            let scales = by_code(scale::<L>(layout, group, b, i));
            for j in 4 * half..4 * half + 4 {
                let codes = unpack_chunk::<L>(layout, codes, j);
                let codes = [_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes)];
                for (i, codes) in codes.into_iter().enumerate() {
                    let codes = _mm512_sub_epi16(_mm512_cvtepu8_epi16(codes), zero);
                    let product = _mm512_mullo_epi16(codes, scales[i]);
                    let out = out.add(j * VECTOR_BYTES + 32 * i).cast::<__m256i>();
                    if form.n_plane == 1 {
                        let product = _mm512_sub_epi16(product, bias);
                        _mm256_store_si256(out, _mm512_cvtepi16_epi8(product));
                        continue;
                    }
                    let high = _mm512_srai_epi16::<LOW_BITS>(product);
                    _mm256_store_si256(out, _mm512_cvtepi16_epi8(high));
                    let low = _mm512_and_si512(product, low);
                    _mm256_store_si256(out.byte_add(PLANE_BYTES), _mm512_cvtepi16_epi8(low));
                }
            }
        }
    }
}

/// A scale of each row, for each of the row's four codes in a vector.
#[inline(always)]
unsafe fn by_code(scales: __m512i) -> [__m512i; 2] {
    // SAFETY: the caller enabled AVX-512.
    unsafe {
        let scales = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(scales));
        let rows = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
        // The same number in each of four places of 16 bits.
        let four = _mm512_mullo_epi64(rows, _mm512_set1_epi64(0x0001_0001_0001_0001));
        let next = _mm512_add_epi16(four, _mm512_set1_epi16(8));
        [_mm512_permutexvar_epi16(four, scales), _mm512_permutexvar_epi16(next, scales)]
    }
}
