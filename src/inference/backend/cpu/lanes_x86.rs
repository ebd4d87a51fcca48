//! Lanes of x86-64: eight rows with AVX2, sixteen with AVX-512 and its integer dot product.
//!
//! Processors without AVX-512 may have that dot product too, on 256 bits: Intel's Core and its
//! small cores have from the twelfth generation on. What AVX2 does with and without it is the same
//! code otherwise, so `VNNI` is an argument of one type.

// Every function of this module runs in a caller that enabled the instruction set of its type
// and vouches for the pointers: the rule of the trait, and the reason of each block below.
#![allow(clippy::undocumented_unsafe_blocks)]

mod wide;

use super::lanes::{Dot, Lanes, unroll};
use std::arch::asm;
use std::arch::x86_64::*;

/// AVX2 with FMA and F16C: eight rows; with `VNNI` on a machine that has AVX-VNNI.
#[derive(Clone, Copy)]
pub struct Avx2Lanes<const VNNI: bool>;

/// AVX-512 F, BW, VL and VNNI: sixteen rows.
#[derive(Clone, Copy)]
pub struct Avx512Lanes;

/// Four codes from `a` in every lane.
#[inline(always)]
unsafe fn four(a: *const i8) -> __m256i {
    unsafe { _mm256_set1_epi32(a.cast::<i32>().read_unaligned()) }
}

// SAFETY: each function touches the lanes that the trait names, with AVX2, FMA and F16C, and with
// AVX-VNNI where the type says so.
unsafe impl<const VNNI: bool> Lanes for Avx2Lanes<VNNI> {
    const ROWS: usize = 8;
    const COLS: usize = 4;
    type F = __m256;
    type I = __m256i;
    type N = __m256i;
    type S = __m256i;
    type P = __m256i;
    const CENTERS_BYTES: bool = !VNNI;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m256i {
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_u4(p: *const u8, is_high: bool) -> __m256i {
        unsafe {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            if is_high {
                _mm256_srli_epi32::<4>(wide)
            } else {
                _mm256_and_si256(wide, _mm256_set1_epi32(15))
            }
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn load_codes(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn bits(x: __m256i, n: u32, from: u32, to: u32) -> __m256i {
        unsafe {
            let mask = _mm256_set1_epi8(((((1u32 << n) - 1) << to) as u8).cast_signed());
            let by = _mm_cvtsi32_si128(from.abs_diff(to).cast_signed());
            let moved = if from >= to { _mm256_srl_epi16(x, by) } else { _mm256_sll_epi16(x, by) };
            _mm256_and_si256(moved, mask)
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn steps(x: __m256i, table: &[u8; 16]) -> __m256i {
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), x)
        }
    }
    #[inline(always)]
    unsafe fn dot(w: &[__m256i], a: *const i8, neg_sum: i32, dot: Dot) -> __m256 {
        unsafe {
            if VNNI {
                let mut sum = _mm256_set1_epi32(dot.zero_log2.map_or(0, |z| neg_sum << z));
                for (j, &w) in w.iter().enumerate() {
                    sum = _mm256_dpbusd_avx_epi32(sum, w, four(a.add(4 * j)));
                }
                return _mm256_cvtepi32_ps(sum);
            }
            // `maddubs` adds pairs into 16 bits, at most 2 * 127 * (2^bits - 1): so many fit
            // before they are widened. Eight-bit codes would saturate and go through their sign
            // instead: |w - 128| <= 128 times +-127, twice, is 32,512.
            let ones = _mm256_set1_epi16(1);
            let mut sum = _mm256_setzero_si256();
            if dot.bits == 8 {
                for (j, &w) in w.iter().enumerate() {
                    let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    let a = _mm256_sign_epi8(four(a.add(4 * j)), w);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), a);
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                }
                return _mm256_cvtepi32_ps(sum);
            }
            let n_fit = 32_767 / (2 * 127 * ((1 << dot.bits) - 1));
            for (i, run) in w.chunks(n_fit).enumerate() {
                let a = a.add(4 * i * n_fit);
                let mut pairs = _mm256_maddubs_epi16(run[0], four(a));
                for (j, &w) in run.iter().enumerate().skip(1) {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, four(a.add(4 * j))));
                }
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            }
            if let Some(z) = dot.zero_log2 {
                sum = _mm256_add_epi32(sum, _mm256_set1_epi32(neg_sum << z));
            }
            _mm256_cvtepi32_ps(sum)
        }
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn scales(x: __m256i) -> __m256i {
        if VNNI { x } else { unsafe { Self::pairs(x, x) } }
    }
    #[inline(always)]
    unsafe fn pairs(first: __m256i, second: __m256i) -> __m256i {
        unsafe { _mm256_blend_epi16::<0xAA>(first, _mm256_slli_epi32::<16>(second)) }
    }
    #[inline(always)]
    unsafe fn add_scaled(
        mut acc: __m256i,
        w: &[__m256i],
        a: *const i8,
        scale: __m256i,
        bits: u32,
    ) -> __m256i {
        unsafe {
            if VNNI {
                let mut acc = [acc];
                Self::add_scaled_tile::<1>(&mut acc, w, a, 0, scale, bits);
                return acc[0];
            }
            // As in `dot`, but what widens the pairs multiplies by the scale as well.
            if bits == 8 {
                for (j, &w) in w.iter().enumerate() {
                    let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    let a = _mm256_sign_epi8(four(a.add(4 * j)), w);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), a);
                    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale));
                }
                return acc;
            }
            let n_fit = 32_767 / (2 * 127 * ((1 << bits) - 1));
            for (i, run) in w.chunks(n_fit).enumerate() {
                let a = a.add(4 * i * n_fit);
                let mut pairs = _mm256_maddubs_epi16(run[0], four(a));
                for (j, &w) in run.iter().enumerate().skip(1) {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, four(a.add(4 * j))));
                }
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale));
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn add_scaled_tile<const C: usize>(
        acc: &mut [__m256i; C],
        w: &[__m256i],
        a: *const i8,
        stride: usize,
        scale: __m256i,
        bits: u32,
    ) {
        unsafe {
            if !VNNI {
                unroll!(C, |c| {
                    acc[c] = Self::add_scaled(acc[c], w, a.add(c * stride), scale, bits);
                });
                return;
            }
            let mut sums = [_mm256_setzero_si256(); C];
            for (j, &w) in w.iter().enumerate() {
                unroll!(C, |c| {
                    let a = four(a.add(c * stride + 4 * j));
                    sums[c] = _mm256_dpbusd_avx_epi32(sums[c], w, a);
                });
            }
            unroll!(C, |c| {
                acc[c] = _mm256_add_epi32(acc[c], _mm256_mullo_epi32(sums[c], scale));
            });
        }
    }
    #[inline(always)]
    unsafe fn add_pairs(acc: __m256i, p: __m256i, a: *const i16) -> __m256i {
        unsafe {
            match VNNI {
                true => dpwssd_avx(acc, p, four(a.cast())),
                false => _mm256_add_epi32(acc, _mm256_madd_epi16(p, four(a.cast()))),
            }
        }
    }
    #[inline(always)]
    unsafe fn sub_shifted(a: __m256i, b: __m256i, by: u32) -> __m256i {
        unsafe {
            let by = _mm_cvtsi32_si128(by.cast_signed());
            _mm256_sub_epi32(a, _mm256_sll_epi32(b, by))
        }
    }
}

/// `_mm512_dpwssd_epi32`, of which the compiler makes a product and a sum where that chain is
/// shorter: twice the instructions, and the chains of a tile do not wait for each other.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpwssd(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: it adds to a register what two others hold.
    unsafe {
        asm!(
            "vpdpwssd {acc}, {a}, {b}",
            acc = inout(zmm_reg) acc, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `_mm256_dpwssd_avx_epi32`, for the same reason.
#[inline]
#[target_feature(enable = "avxvnni")]
fn dpwssd_avx(mut acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe {
        asm!(
            "{{vex}} vpdpwssd {acc}, {a}, {b}",
            acc = inout(ymm_reg) acc, a = in(ymm_reg) a, b = in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

// SAFETY: each function touches the lanes that the trait names, with AVX-512 F, BW, VL, VNNI.
unsafe impl Lanes for Avx512Lanes {
    const ROWS: usize = 16;
    const COLS: usize = 16;
    type F = __m512;
    type I = __m512i;
    type N = __m512i;
    type S = __m512i;
    type P = __m512i;
    const CENTERS_BYTES: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_u4(p: *const u8, is_high: bool) -> __m512i {
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            if is_high {
                _mm512_srli_epi32::<4>(wide)
            } else {
                _mm512_and_si512(wide, _mm512_set1_epi32(15))
            }
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn load_codes(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn bits(x: __m512i, n: u32, from: u32, to: u32) -> __m512i {
        unsafe {
            let mask = _mm512_set1_epi8(((((1u32 << n) - 1) << to) as u8).cast_signed());
            let by = _mm_cvtsi32_si128(from.abs_diff(to).cast_signed());
            let moved = if from >= to { _mm512_srl_epi16(x, by) } else { _mm512_sll_epi16(x, by) };
            _mm512_and_si512(moved, mask)
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn steps(x: __m512i, table: &[u8; 16]) -> __m512i {
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), x)
        }
    }
    #[inline(always)]
    unsafe fn dot(w: &[__m512i], a: *const i8, neg_sum: i32, dot: Dot) -> __m512 {
        unsafe {
            let mut sum = match dot.zero_log2 {
                Some(zero) => _mm512_set1_epi32(neg_sum << zero),
                None => _mm512_setzero_si512(),
            };
            for (j, &w) in w.iter().enumerate() {
                let a = _mm512_set1_epi32(a.add(4 * j).cast::<i32>().read_unaligned());
                sum = _mm512_dpbusd_epi32(sum, w, a);
            }
            _mm512_cvtepi32_ps(sum)
        }
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn scales(x: __m512i) -> __m512i {
        x
    }
    #[inline(always)]
    unsafe fn pairs(first: __m512i, second: __m512i) -> __m512i {
        unsafe { _mm512_mask_mov_epi16(first, 0xAAAA_AAAA, _mm512_slli_epi32::<16>(second)) }
    }
    #[inline(always)]
    unsafe fn add_scaled(
        acc: __m512i,
        w: &[__m512i],
        a: *const i8,
        scale: __m512i,
        _bits: u32,
    ) -> __m512i {
        unsafe {
            let mut sum = _mm512_setzero_si512();
            for (j, &w) in w.iter().enumerate() {
                let a = _mm512_set1_epi32(a.add(4 * j).cast::<i32>().read_unaligned());
                sum = _mm512_dpbusd_epi32(sum, w, a);
            }
            _mm512_add_epi32(acc, _mm512_mullo_epi32(sum, scale))
        }
    }
    #[inline(always)]
    unsafe fn add_scaled_tile<const C: usize>(
        acc: &mut [__m512i; C],
        w: &[__m512i],
        a: *const i8,
        stride: usize,
        scale: __m512i,
        _bits: u32,
    ) {
        unsafe {
            let mut sums = [_mm512_setzero_si512(); C];
            for (j, &w) in w.iter().enumerate() {
                unroll!(C, |c| {
                    let a = a.add(c * stride + 4 * j).cast::<i32>().read_unaligned();
                    sums[c] = _mm512_dpbusd_epi32(sums[c], w, _mm512_set1_epi32(a));
                });
            }
            unroll!(C, |c| {
                acc[c] = _mm512_add_epi32(acc[c], _mm512_mullo_epi32(sums[c], scale));
            });
        }
    }
    #[inline(always)]
    unsafe fn add_pairs(acc: __m512i, p: __m512i, a: *const i16) -> __m512i {
        unsafe {
            let a = _mm512_set1_epi32(a.cast::<i32>().read_unaligned());
            dpwssd(acc, p, a)
        }
    }
    #[inline(always)]
    unsafe fn sub_shifted(a: __m512i, b: __m512i, by: u32) -> __m512i {
        unsafe {
            let by = _mm_cvtsi32_si128(by.cast_signed());
            _mm512_sub_epi32(a, _mm512_sll_epi32(b, by))
        }
    }
}
