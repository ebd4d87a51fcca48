//! Lanes: the vocabulary of matrix multiplication. In panels a lane is an output row.
//!
//! A vector of codes holds four consecutive weights of each of its rows, so that one integer dot
//! instruction advances every row by four weights, and no sum ever crosses lanes. Each instruction
//! set does the same exact integer sums and the same float operations on each row, in the same
//! order; only how many rows share a register differs. So results are equal bit for bit.

use crate::inference::quant::f16_to_f32;
pub use crate::inference::quant::panel::Dot;

/// `ROWS` lanes of f32, and as many lanes of four codes or an i32.
///
/// # Safety
/// Callers run on a machine that has the instruction set, and pointers are readable (writable for
/// `store`) for the lanes named.
pub unsafe trait Lanes: Copy {
    /// Rows of a vector; divides 16.
    const ROWS: usize;
    /// Columns of a tile: as many as leave its sums in registers.
    const COLS: usize;
    /// An f32 for each row.
    type F: Copy;
    /// Four bytes for each row.
    type I: Copy;

    /// The same value in each lane.
    unsafe fn splat(x: f32) -> Self::F;
    /// f32 values from `p`.
    unsafe fn load(p: *const f32) -> Self::F;
    /// f16 values from `p`, widened exactly.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// bf16 values from `p`, widened exactly.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// Signed bytes from `p`.
    unsafe fn load_i8(p: *const u8) -> Self::F;
    /// Unsigned bytes from `p`, `(p[i] >> shift) & mask`.
    unsafe fn load_u8(p: *const u8, shift: u32, mask: u8) -> Self::F;
    /// Values to `p`.
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a + b`
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `4 * ROWS` bytes from `p`.
    unsafe fn load_codes(p: *const u8) -> Self::I;
    /// Moves the `n` bits at `from` of each byte to `to`; the others become zero.
    unsafe fn bits(x: Self::I, n: u32, from: u32, to: u32) -> Self::I;
    /// `a | b`
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Each byte, at most 15, becomes the step of that number.
    unsafe fn steps(x: Self::I, table: &[u8; 16]) -> Self::I;
    /// For each row, `sum over j, k < 4 of (w[j][k] - zero) * a[4 j + k]`; `a` is within +-127, and
    /// `neg_sum` is minus the sum of `a`.
    unsafe fn dot(w: &[Self::I], a: *const i8, neg_sum: i32, dot: Dot) -> Self::F;
}

/// Does `$body` for each number below `$n`, at most 16, written out: a loop of a large body is left
/// rolled by the compiler, and the sums it adds to would live in memory.
macro_rules! unroll {
    ($n:expr, |$i:ident| $body:block) => {
        unroll!($n, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($n:expr, $i:ident, $body:block, $($at:literal)*) => {
        $(if $at < $n {
            let $i: usize = $at;
            $body
        })*
    };
}
pub(super) use unroll;

// No closure stands between a kernel and an intrinsic below: a closure is compiled without the
// instruction set of the function around it, and the intrinsic would become a call.

/// Plain Rust: arrays and loops.
#[derive(Clone, Copy)]
pub struct ScalarLanes;

// SAFETY: no instruction set is needed; each function touches the lanes that the trait names.
unsafe impl Lanes for ScalarLanes {
    const ROWS: usize = 16;
    const COLS: usize = 2;
    type F = [f32; 16];
    type I = [u8; 64];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the lanes, here and below.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: as above.
        let bits = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        bits.map(|b| f16_to_f32(u16::from_le_bytes(b)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        // SAFETY: as above.
        let bits = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        // SAFETY: as above.
        unsafe { p.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8, shift: u32, mask: u8) -> Self::F {
        // SAFETY: as above.
        unsafe { p.cast::<[u8; 16]>().read_unaligned() }.map(|b| f32::from(b >> shift & mask))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: as above.
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|r| a[r] + b[r])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|r| a[r] * b[r])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|r| a[r].mul_add(b[r], c[r]))
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|r| (-a[r]).mul_add(b[r], c[r]))
    }
    #[inline(always)]
    unsafe fn load_codes(p: *const u8) -> Self::I {
        // SAFETY: as above.
        unsafe { p.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn bits(x: Self::I, n: u32, from: u32, to: u32) -> Self::I {
        x.map(|b| (b >> from & ((1u32 << n) - 1) as u8) << to)
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn steps(x: Self::I, table: &[u8; 16]) -> Self::I {
        x.map(|b| table[usize::from(b & 15)])
    }
    #[inline(always)]
    unsafe fn dot(w: &[Self::I], a: *const i8, neg_sum: i32, dot: Dot) -> Self::F {
        let mut sums = [dot.zero_log2.map_or(0, |z| neg_sum << z); 16];
        for (j, w) in w.iter().enumerate() {
            // SAFETY: as above.
            let a = unsafe { a.add(4 * j).cast::<[i8; 4]>().read_unaligned() };
            for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
                *sum += (0..4).map(|k| i32::from(w[k]) * i32::from(a[k])).sum::<i32>();
            }
        }
        sums.map(|s| s as f32)
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2Lanes, Avx512Lanes};

#[cfg(target_arch = "x86_64")]
mod x86 {
    // Every function of this module runs in a caller that enabled the instruction set of its type
    // and vouches for the pointers: the rule of the trait, and the reason of each block below.
    #![allow(clippy::undocumented_unsafe_blocks)]

    use super::{Dot, Lanes};
    use std::arch::x86_64::*;

    /// AVX2 with FMA and F16C: eight rows.
    #[derive(Clone, Copy)]
    pub struct Avx2Lanes;

    /// AVX-512 F, BW, VL and VNNI: sixteen rows.
    #[derive(Clone, Copy)]
    pub struct Avx512Lanes;

    /// Four codes from `a` in every lane.
    #[inline(always)]
    unsafe fn four(a: *const i8) -> __m256i {
        unsafe { _mm256_set1_epi32(a.cast::<i32>().read_unaligned()) }
    }

    // SAFETY: each function touches the lanes that the trait names, with AVX2, FMA and F16C.
    unsafe impl Lanes for Avx2Lanes {
        const ROWS: usize = 8;
        const COLS: usize = 4;
        type F = __m256;
        type I = __m256i;

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
        unsafe fn load_i8(p: *const u8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8, shift: u32, mask: u8) -> __m256 {
            unsafe {
                let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let wide = _mm256_srl_epi32(wide, _mm_cvtsi32_si128(shift.cast_signed()));
                _mm256_cvtepi32_ps(_mm256_and_si256(wide, _mm256_set1_epi32(i32::from(mask))))
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
                let moved =
                    if from >= to { _mm256_srl_epi16(x, by) } else { _mm256_sll_epi16(x, by) };
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
            // `maddubs` adds pairs into 16 bits, at most 2 * 127 * (2^bits - 1): so many fit before
            // they are widened. Eight-bit codes would saturate and go through their sign instead:
            // |w - 128| <= 128 times +-127, twice, is 32,512.
            unsafe {
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
                        pairs =
                            _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, four(a.add(4 * j))));
                    }
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                }
                if let Some(z) = dot.zero_log2 {
                    sum = _mm256_add_epi32(sum, _mm256_set1_epi32(neg_sum << z));
                }
                _mm256_cvtepi32_ps(sum)
            }
        }
    }

    // SAFETY: each function touches the lanes that the trait names, with AVX-512 F, BW, VL, VNNI.
    unsafe impl Lanes for Avx512Lanes {
        const ROWS: usize = 16;
        const COLS: usize = 16;
        type F = __m512;
        type I = __m512i;

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
        unsafe fn load_i8(p: *const u8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8, shift: u32, mask: u8) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
                let wide = _mm512_srl_epi32(wide, _mm_cvtsi32_si128(shift.cast_signed()));
                _mm512_cvtepi32_ps(_mm512_and_si512(wide, _mm512_set1_epi32(i32::from(mask))))
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
                let moved =
                    if from >= to { _mm512_srl_epi16(x, by) } else { _mm512_sll_epi16(x, by) };
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
    }
}
