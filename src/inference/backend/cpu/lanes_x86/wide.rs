//! Two vectors of expanded rows times a few columns, with AVX2, AVX-VNNI and AVX-512.

// As in the module above.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::{Avx2Lanes, Avx512Lanes, dpwssd, dpwssd_avx, four};
use crate::inference::backend::cpu::expand::Fold;
use crate::inference::backend::cpu::lanes::{Dot, Lanes, WideLanes, unroll};
use std::arch::x86_64::*;

/// `acc + scale * (w . a)` for `N` vectors of codes of fewer than eight bits, with a scale for each
/// two codes of a row's four: what `maddubs` gives is added in 16 bits for as long as it fits. One
/// of its operands is unsigned: the codes, or, where those are `SIGNED`, the activations.
#[inline(always)]
unsafe fn add_pairs_of<const SIGNED: bool, const C: usize, const N: usize>(
    acc: &mut [[__m256i; C]; 2],
    w: [*const u8; 2],
    (a, stride): (*const i8, usize),
    scale: [__m256i; 2],
    bits: u32,
) {
    unsafe {
        let largest = if SIGNED { 255 << (bits - 1) } else { 127 * ((1 << bits) - 1) };
        let n_fit = 32_767 / (2 * largest);
        let mut pairs = [[_mm256_setzero_si256(); C]; 2];
        unroll!(N, |j| {
            let w = [
                _mm256_loadu_si256(w[0].add(64 * j).cast()),
                _mm256_loadu_si256(w[1].add(64 * j).cast()),
            ];
            unroll!(C, |c| {
                let a = four(a.add(c * stride + 4 * j));
                unroll!(2, |r| {
                    let (unsigned, signed) = if SIGNED { (a, w[r]) } else { (w[r], a) };
                    let new = _mm256_maddubs_epi16(unsigned, signed);
                    pairs[r][c] =
                        if j % n_fit == 0 { new } else { _mm256_add_epi16(pairs[r][c], new) };
                });
            });
            if (j + 1) % n_fit == 0 || j + 1 == N {
                unroll!(2, |r| {
                    unroll!(C, |c| {
                        let product = _mm256_madd_epi16(pairs[r][c], scale[r]);
                        acc[r][c] = _mm256_add_epi32(acc[r][c], product);
                    });
                });
            }
        });
    }
}

/// `acc + scale * (w - 128) . a` for `N` vectors: eight bits would saturate and go through their
/// sign instead, as in `Avx2Lanes::dot`.
#[inline(always)]
unsafe fn add_bytes<const C: usize, const N: usize>(
    acc: &mut [[__m256i; C]; 2],
    w: [*const u8; 2],
    (a, stride): (*const i8, usize),
    scale: [__m256i; 2],
) {
    unsafe {
        unroll!(N, |j| {
            unroll!(2, |r| {
                let w = _mm256_loadu_si256(w[r].add(64 * j).cast());
                let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                let abs = _mm256_abs_epi8(w);
                unroll!(C, |c| {
                    let a = _mm256_sign_epi8(four(a.add(c * stride + 4 * j)), w);
                    let pairs = _mm256_maddubs_epi16(abs, a);
                    let product = _mm256_madd_epi16(pairs, scale[r]);
                    acc[r][c] = _mm256_add_epi32(acc[r][c], product);
                });
            });
        });
    }
}

// SAFETY: each function touches what the trait names, with AVX2, FMA and F16C, and with AVX-VNNI
// where the type says so.
unsafe impl<const VNNI: bool> WideLanes for Avx2Lanes<VNNI> {
    // Without dot products, products of eight bits cost more than codes of fewer.
    const FOLDS: bool = VNNI;
    const NARROWS: bool = VNNI;
    const BIASES: bool = !VNNI;

    #[inline(always)]
    unsafe fn fold(codes: __m256i, scale: __m256i, fold: Fold) -> __m256i {
        unsafe {
            let (from, to) =
                (_mm256_set1_epi16(fold.code_zero), _mm256_set1_epi16(fold.product_zero));
            // A half holds the codes of four rows, an unpacked half those of two, as words; so
            // each scale stands four times.
            let scales = Self::pairs(scale, scale);
            let zero = _mm256_setzero_si256();
            let low = _mm256_sub_epi16(_mm256_unpacklo_epi8(codes, zero), from);
            let high = _mm256_sub_epi16(_mm256_unpackhi_epi8(codes, zero), from);
            let low = _mm256_mullo_epi16(low, _mm256_unpacklo_epi32(scales, scales));
            let high = _mm256_mullo_epi16(high, _mm256_unpackhi_epi32(scales, scales));
            _mm256_packus_epi16(_mm256_add_epi16(low, to), _mm256_add_epi16(high, to))
        }
    }
    #[inline(always)]
    unsafe fn dot_pair<const C: usize>(
        w: [*const u8; 2],
        (a, neg_sum, stride): (*const i8, *const i32, usize),
        dot: Dot,
    ) -> [[__m256; C]; 2] {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut sums = [[_mm256_setzero_si256(); C]; 2];
            if let Some(z) = dot.zero_log2
                && !(Self::CENTERS_BYTES && dot.bits == 8)
            {
                let by = _mm_cvtsi32_si128(z.cast_signed());
                unroll!(C, |c| {
                    let from = _mm256_set1_epi32(neg_sum.byte_add(c * stride).read());
                    sums[0][c] = _mm256_sll_epi32(from, by);
                    sums[1][c] = sums[0][c];
                });
            }
            if VNNI {
                Self::add_dots::<C, 8>(&mut sums, w, a, stride);
            } else if dot.bits == 8 {
                add_bytes::<C, 8>(&mut sums, w, (a, stride), [ones; 2]);
            } else {
                add_pairs_of::<false, C, 8>(&mut sums, w, (a, stride), [ones; 2], dot.bits);
            }
            let mut dots = [[_mm256_setzero_ps(); C]; 2];
            unroll!(C, |c| {
                dots[0][c] = _mm256_cvtepi32_ps(sums[0][c]);
                dots[1][c] = _mm256_cvtepi32_ps(sums[1][c]);
            });
            dots
        }
    }
    #[inline(always)]
    unsafe fn add_scaled_pair<const C: usize, const N: usize>(
        acc: &mut [[__m256i; C]; 2],
        w: [*const u8; 2],
        (a, stride): (*const i8, usize),
        scale: [__m256i; 2],
        bits: u32,
    ) {
        unsafe {
            if VNNI {
                let mut sums = [[_mm256_setzero_si256(); C]; 2];
                Self::add_dots::<C, N>(&mut sums, w, a, stride);
                unroll!(2, |r| {
                    unroll!(C, |c| {
                        let product = _mm256_mullo_epi32(sums[r][c], scale[r]);
                        acc[r][c] = _mm256_add_epi32(acc[r][c], product);
                    });
                });
                return;
            }
            if bits == 8 {
                return add_bytes::<C, N>(acc, w, (a, stride), scale);
            }
            add_pairs_of::<false, C, N>(acc, w, (a, stride), scale, bits);
        }
    }
    #[inline(always)]
    unsafe fn signed(codes: [__m256i; 8], zero: u8) -> [__m256i; 8] {
        unsafe {
            let zero = _mm256_set1_epi8(zero.cast_signed());
            let mut out = codes;
            for i in 0..4 {
                let first = _mm256_sub_epi8(codes[i], zero);
                let last = _mm256_sub_epi8(codes[i + 4], zero);
                out[2 * i] = Self::pairs(first, last);
                out[2 * i + 1] = _mm256_blend_epi16::<0xAA>(_mm256_srli_epi32::<16>(first), last);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn add_biased<const C: usize>(
        acc: &mut [[__m256i; C]; 2],
        w: [*const u8; 2],
        (a, stride): (*const u8, usize),
        scale: [__m256i; 2],
        bits: u32,
    ) {
        debug_assert!(!VNNI);
        unsafe { add_pairs_of::<true, C, 8>(acc, w, (a.cast(), stride), scale, bits) }
    }
    #[inline(always)]
    unsafe fn add_narrow<const C: usize>(
        acc: &mut [[__m256i; C]; 2],
        w: [*const u8; 2],
        (a, from, stride): (*const i8, Option<*const i32>, usize),
        scale: [__m256i; 2],
    ) {
        // As with AVX-512 below. Without dot products nothing is narrowed.
        debug_assert!(VNNI);
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); C]; 2];
            if let Some(from) = from {
                unroll!(C, |c| {
                    sums[0][c] = _mm256_set1_epi32(from.byte_add(c * stride).read());
                    sums[1][c] = sums[0][c];
                });
            }
            Self::add_dots::<C, 8>(&mut sums, w, a, stride);
            unroll!(2, |r| {
                unroll!(C, |c| {
                    acc[r][c] = dpwssd_avx(acc[r][c], sums[r][c], scale[r]);
                });
            });
        }
    }
    #[inline(always)]
    unsafe fn add_dots<const C: usize, const N: usize>(
        acc: &mut [[__m256i; C]; 2],
        w: [*const u8; 2],
        a: *const i8,
        stride: usize,
    ) {
        debug_assert!(VNNI, "only who has dot products asks for nothing else");
        unsafe {
            unroll!(N, |j| {
                let w = [
                    _mm256_loadu_si256(w[0].add(64 * j).cast()),
                    _mm256_loadu_si256(w[1].add(64 * j).cast()),
                ];
                unroll!(C, |c| {
                    let a = four(a.add(c * stride + 4 * j));
                    acc[0][c] = _mm256_dpbusd_avx_epi32(acc[0][c], w[0], a);
                    acc[1][c] = _mm256_dpbusd_avx_epi32(acc[1][c], w[1], a);
                });
            });
        }
    }
}

// SAFETY: each function touches what the trait names, with AVX-512 F, BW, VL, VNNI.
unsafe impl WideLanes for Avx512Lanes {
    const FOLDS: bool = true;
    const NARROWS: bool = true;
    const BIASES: bool = false;

    #[inline(always)]
    unsafe fn fold(codes: __m512i, scale: __m512i, fold: Fold) -> __m512i {
        unsafe {
            let (from, to) =
                (_mm512_set1_epi16(fold.code_zero), _mm512_set1_epi16(fold.product_zero));
            // A quarter holds the four codes of two rows as words, so each scale stands four times.
            let scales = Self::pairs(scale, scale);
            let zero = _mm512_setzero_si512();
            let low = _mm512_sub_epi16(_mm512_unpacklo_epi8(codes, zero), from);
            let high = _mm512_sub_epi16(_mm512_unpackhi_epi8(codes, zero), from);
            let low = _mm512_mullo_epi16(low, _mm512_unpacklo_epi32(scales, scales));
            let high = _mm512_mullo_epi16(high, _mm512_unpackhi_epi32(scales, scales));
            _mm512_packus_epi16(_mm512_add_epi16(low, to), _mm512_add_epi16(high, to))
        }
    }

    #[inline(always)]
    unsafe fn dot_pair<const C: usize>(
        w: [*const u8; 2],
        (a, neg_sum, stride): (*const i8, *const i32, usize),
        dot: Dot,
    ) -> [[__m512; C]; 2] {
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); C]; 2];
            if let Some(z) = dot.zero_log2 {
                let by = _mm_cvtsi32_si128(z.cast_signed());
                unroll!(C, |c| {
                    let from = _mm512_set1_epi32(neg_sum.byte_add(c * stride).read());
                    sums[0][c] = _mm512_sll_epi32(from, by);
                    sums[1][c] = sums[0][c];
                });
            }
            Self::add_dots::<C, 8>(&mut sums, w, a, stride);
            let mut dots = [[_mm512_setzero_ps(); C]; 2];
            unroll!(C, |c| {
                dots[0][c] = _mm512_cvtepi32_ps(sums[0][c]);
                dots[1][c] = _mm512_cvtepi32_ps(sums[1][c]);
            });
            dots
        }
    }
    #[inline(always)]
    unsafe fn add_scaled_pair<const C: usize, const N: usize>(
        acc: &mut [[__m512i; C]; 2],
        w: [*const u8; 2],
        (a, stride): (*const i8, usize),
        scale: [__m512i; 2],
        _bits: u32,
    ) {
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); C]; 2];
            Self::add_dots::<C, N>(&mut sums, w, a, stride);
            unroll!(2, |r| {
                unroll!(C, |c| {
                    let product = _mm512_mullo_epi32(sums[r][c], scale[r]);
                    acc[r][c] = _mm512_add_epi32(acc[r][c], product);
                });
            });
        }
    }
    #[inline(always)]
    unsafe fn add_narrow<const C: usize>(
        acc: &mut [[__m512i; C]; 2],
        w: [*const u8; 2],
        (a, from, stride): (*const i8, Option<*const i32>, usize),
        scale: [__m512i; 2],
    ) {
        // The high halves of a scale are zero, so what is added is the low half of each sum,
        // which is all of it, times the scale: one instruction where `mullo` is two and a sum.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); C]; 2];
            if let Some(from) = from {
                unroll!(C, |c| {
                    sums[0][c] = _mm512_set1_epi32(from.byte_add(c * stride).read());
                    sums[1][c] = sums[0][c];
                });
            }
            Self::add_dots::<C, 8>(&mut sums, w, a, stride);
            unroll!(2, |r| {
                unroll!(C, |c| {
                    acc[r][c] = dpwssd(acc[r][c], sums[r][c], scale[r]);
                });
            });
        }
    }
    #[inline(always)]
    unsafe fn add_dots<const C: usize, const N: usize>(
        acc: &mut [[__m512i; C]; 2],
        w: [*const u8; 2],
        a: *const i8,
        stride: usize,
    ) {
        unsafe {
            unroll!(N, |j| {
                let w = [
                    _mm512_loadu_si512(w[0].add(64 * j).cast()),
                    _mm512_loadu_si512(w[1].add(64 * j).cast()),
                ];
                unroll!(C, |c| {
                    let a = a.add(c * stride + 4 * j).cast::<i32>().read_unaligned();
                    let a = _mm512_set1_epi32(a);
                    acc[0][c] = _mm512_dpbusd_epi32(acc[0][c], w[0], a);
                    acc[1][c] = _mm512_dpbusd_epi32(acc[1][c], w[1], a);
                });
            });
        }
    }
}
