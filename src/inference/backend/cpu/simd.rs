//! Eight lanes of f32: the vocabulary of attention, and of rounding activations.
//!
//! A kernel is generic over [`Simd`]; [`Scalar`] is its plain twin and the oracle of the others.
//! Every implementation does the same float operations in the same order, lane by lane, and every
//! multiply-add is fused, so results are equal bit for bit whatever the instruction set. Functions
//! are `inline(always)` and take effect inside a caller that enables the instruction set.

use crate::inference::quant::f16_to_f32;

/// Lanes of a vector.
pub const LANES: usize = 8;

/// A stored number.
pub trait Element: Copy {
    /// Eight from `p`, as f32.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load(p) }
    }
}

/// An f16.
impl Element for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load_f16(p) }
    }
}

/// Eight f32 lanes.
///
/// # Safety
/// Callers run on a machine that has the instruction set, and pointers are readable (writable for
/// `store`) for the lanes named.
pub unsafe trait Simd: Copy {
    /// Eight f32.
    type F: Copy;
    /// Rows that a tile sums at once: as many as leave its sums in registers.
    const TILE_ROWS: usize;
    /// Whether some multiplication of activations that these instructions rounded reads
    /// `ActChunk::biased`.
    const BIASES: bool = false;

    /// `[x; 8]`
    unsafe fn splat(x: f32) -> Self::F;
    /// Eight values from `p`.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Eight f16 values from `p`, widened exactly.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Eight values to `p`.
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a + b`
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `sums[i][j] += a[i][k] * b[k][j]` over `k` below `n`, in order; `a` and `b` come with the
    /// distance of their rows.
    #[inline(always)]
    unsafe fn add_products<T: Element, const Q: usize, const V: usize>(
        sums: &mut [[Self::F; V]; Q],
        (a, a_stride): (*const f32, usize),
        (b, b_stride): (*const T, usize),
        n: usize,
    ) {
        // SAFETY: the caller vouches for `n` terms.
        unsafe {
            let mut acc = *sums;
            for k in 0..n {
                let mut row = [Self::splat(0.0); V];
                for j in 0..V {
                    row[j] = T::load::<Self>(b.add(k * b_stride + j * LANES));
                }
                for i in 0..Q {
                    let x = Self::splat(*a.add(i * a_stride + k));
                    for j in 0..V {
                        acc[i][j] = Self::fma(x, row[j], acc[i][j]);
                    }
                }
            }
            *sums = acc;
        }
    }
    /// Rounds 32 values times `factor`, at most 127 in size, to whole numbers, ties to even, and
    /// gives the sums of the first and of the last sixteen. NaN becomes some number within +-127.
    unsafe fn put_codes(x: *const f32, factor: f32, out: *mut i8) -> [i32; 2];
}

/// Asks for the cache line of `p`, into the nearest cache. Nothing is read: any address will do.
#[inline(always)]
pub fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has it, and an address that is not mapped is no fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// [`prefetch`] into the second cache, on x86-64: nobody was seen to gain by it elsewhere.
#[inline(always)]
pub fn prefetch_l2(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// 1.5 * 2^23: added to a small f32, it leaves the nearest whole number in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// The plain twin: an array and loops.
#[derive(Clone, Copy)]
pub struct Scalar;

// SAFETY: no instruction set is needed; each function touches the lanes that the trait names.
unsafe impl Simd for Scalar {
    type F = [f32; LANES];
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller vouches for eight readable values.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller vouches for eight readable values.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(f16_to_f32)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: the caller vouches for eight writable values.
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|j| a[j] + b[j])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|j| if a[j] > b[j] { a[j] } else { b[j] })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|j| a[j] * b[j])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|j| a[j].mul_add(b[j], c[j]))
    }
    #[inline(always)]
    unsafe fn put_codes(x: *const f32, factor: f32, out: *mut i8) -> [i32; 2] {
        // SAFETY: the caller vouches for 32 values and places.
        let x = unsafe { x.cast::<[[f32; 16]; 2]>().read_unaligned() };
        let codes = x.map(|half| {
            half.map(|x| {
                let rounded = (x * factor + ROUNDER).to_bits().cast_signed();
                (rounded - ROUNDER.to_bits().cast_signed()).clamp(-127, 127)
            })
        });
        let bytes = codes.map(|half| half.map(|code| code as i8));
        // SAFETY: as above.
        unsafe { out.cast::<[[i8; 16]; 2]>().write_unaligned(bytes) };
        codes.map(|half| half.iter().sum())
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Element, LANES, Simd};
    use std::arch::x86_64::*;

    /// AVX2 with FMA and F16C.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// AVX2, but for sums of products, which have 512 bits.
    #[derive(Clone, Copy)]
    pub struct Avx512;

    macro_rules! ymm_ops {
        () => {
            type F = __m256;

            #[inline(always)]
            unsafe fn splat(x: f32) -> __m256 {
                // SAFETY: the caller enabled AVX2 (for all functions of this macro) and vouches
                // for the pointers.
                unsafe { _mm256_set1_ps(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_loadu_ps(p) }
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u16) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, x: __m256) {
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(p, x) }
            }
            #[inline(always)]
            unsafe fn add(a: __m256, b: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_add_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn max(a: __m256, b: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_max_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: __m256, b: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_mul_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_fmadd_ps(a, b, c) }
            }
            #[inline(always)]
            unsafe fn put_codes(x: *const f32, factor: f32, out: *mut i8) -> [i32; 2] {
                // SAFETY: as above.
                unsafe {
                    let factor = _mm256_set1_ps(factor);
                    let mut ints = [_mm256_setzero_si256(); 4];
                    for i in 0..4 {
                        let x = _mm256_mul_ps(_mm256_loadu_ps(x.add(8 * i)), factor);
                        ints[i] = _mm256_cvtps_epi32(x);
                    }
                    let first = _mm256_packs_epi32(ints[0], ints[1]);
                    let second = _mm256_packs_epi32(ints[2], ints[3]);
                    // Packing stays within halves: four codes of each vector, then four more.
                    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                    let codes = _mm256_packs_epi16(first, second);
                    let codes = _mm256_permutevar8x32_epi32(codes, order);
                    let codes = _mm256_max_epi8(codes, _mm256_set1_epi8(-127));
                    _mm256_storeu_si256(out.cast(), codes);
                    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
                    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                    let eights = _mm256_hadd_epi32(fours, fours);
                    let sums = _mm256_hadd_epi32(eights, eights);
                    [
                        _mm256_cvtsi256_si32(sums),
                        _mm_cvtsi128_si32(_mm256_extracti128_si256::<1>(sums)),
                    ]
                }
            }
        };
    }

    // SAFETY: each function touches the lanes that the trait names, with AVX2, FMA and F16C.
    unsafe impl Simd for Avx2 {
        ymm_ops!();
        const TILE_ROWS: usize = 2;
        const BIASES: bool = true;
    }

    // SAFETY: as above; a caller that enabled AVX-512 enabled these as well.
    unsafe impl Simd for Avx512 {
        ymm_ops!();
        const TILE_ROWS: usize = 8;

        // Two vectors at a time, where there are two.
        #[inline(always)]
        unsafe fn add_products<T: Element, const Q: usize, const V: usize>(
            sums: &mut [[__m256; V]; Q],
            (a, a_stride): (*const f32, usize),
            (b, b_stride): (*const T, usize),
            n: usize,
        ) {
            let n_pair = V / 2;
            // SAFETY: as above, and the caller vouches for `n` terms.
            unsafe {
                let mut pairs = [[_mm512_setzero_ps(); V]; Q];
                for i in 0..Q {
                    for j in 0..n_pair {
                        pairs[i][j] = join(sums[i][2 * j], sums[i][2 * j + 1]);
                    }
                }
                for k in 0..n {
                    let mut row = [_mm256_setzero_ps(); V];
                    for j in 0..V {
                        row[j] = T::load::<Self>(b.add(k * b_stride + j * LANES));
                    }
                    for i in 0..Q {
                        let x = *a.add(i * a_stride + k);
                        for j in 0..n_pair {
                            let row = join(row[2 * j], row[2 * j + 1]);
                            pairs[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(x), row, pairs[i][j]);
                        }
                        for j in 2 * n_pair..V {
                            sums[i][j] = _mm256_fmadd_ps(_mm256_set1_ps(x), row[j], sums[i][j]);
                        }
                    }
                }
                for i in 0..Q {
                    for j in 0..n_pair {
                        sums[i][2 * j] = _mm512_castps512_ps256(pairs[i][j]);
                        sums[i][2 * j + 1] = _mm512_extractf32x8_ps::<1>(pairs[i][j]);
                    }
                }
            }
        }
    }

    /// Sixteen lanes of twice eight.
    #[inline(always)]
    unsafe fn join(low: __m256, high: __m256) -> __m512 {
        // SAFETY: the caller enabled AVX-512, its DQ as well.
        unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high) }
    }
}

#[cfg(target_arch = "aarch64")]
pub use neon::Neon;

#[cfg(target_arch = "aarch64")]
mod neon {
    // As of the pointers, the rule of the trait is the reason of each block below; the instructions
    // are there on every AArch64 processor.
    #![allow(clippy::undocumented_unsafe_blocks)]

    use super::Simd;
    use std::arch::aarch64::*;

    /// NEON as of ARMv8.0.
    #[derive(Clone, Copy)]
    pub struct Neon;

    // SAFETY: each function touches the lanes that the trait names.
    unsafe impl Simd for Neon {
        type F = float32x4x2_t;
        const TILE_ROWS: usize = 2;

        #[inline(always)]
        unsafe fn splat(x: f32) -> float32x4x2_t {
            unsafe { float32x4x2_t(vdupq_n_f32(x), vdupq_n_f32(x)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> float32x4x2_t {
            unsafe { float32x4x2_t(vld1q_f32(p), vld1q_f32(p.add(4))) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> float32x4x2_t {
            unsafe {
                let bits = vreinterpretq_f16_u16(vld1q_u16(p));
                float32x4x2_t(vcvt_f32_f16(vget_low_f16(bits)), vcvt_high_f32_f16(bits))
            }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, x: float32x4x2_t) {
            unsafe {
                vst1q_f32(p, x.0);
                vst1q_f32(p.add(4), x.1);
            }
        }
        #[inline(always)]
        unsafe fn add(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
            unsafe { float32x4x2_t(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn max(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
            // Not `vmaxq`, which has another opinion of NaN.
            unsafe {
                float32x4x2_t(
                    vbslq_f32(vcgtq_f32(a.0, b.0), a.0, b.0),
                    vbslq_f32(vcgtq_f32(a.1, b.1), a.1, b.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn mul(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
            unsafe { float32x4x2_t(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn fma(a: float32x4x2_t, b: float32x4x2_t, c: float32x4x2_t) -> float32x4x2_t {
            unsafe { float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn put_codes(x: *const f32, factor: f32, out: *mut i8) -> [i32; 2] {
            unsafe {
                let four = |i| vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x.add(i)), factor));
                let mut sums = [0; 2];
                for (half, sum) in sums.iter_mut().enumerate() {
                    let i = 16 * half;
                    let first = vqmovn_high_s32(vqmovn_s32(four(i)), four(i + 4));
                    let second = vqmovn_high_s32(vqmovn_s32(four(i + 8)), four(i + 12));
                    let codes = vqmovn_high_s16(vqmovn_s16(first), second);
                    let codes = vmaxq_s8(codes, vdupq_n_s8(-127));
                    vst1q_s8(out.add(i), codes);
                    *sum = i32::from(vaddlvq_s8(codes));
                }
                sums
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::inference::quant::f16_to_f32;

    #[test]
    fn every_f16_widens_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()));
        }
    }
}
