// Halves with the bits of the device: conversions, and a * b + c with a single rounding.
//
// A processor that has the operation itself makes it. Elsewhere: a float or double that is rounded
// to odd first (its last bit set where anything was lost) can be rounded again without harm, so the
// products are made in double, brought to float that way, and from there to half by the processor.
#pragma once

#if defined(__F16C__) && defined(__FMA__)
#include <immintrin.h>

static inline float h2f(u16 h) { return _cvtsh_ss(h); }
static inline u16 f2h(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }

#if defined(__AVX512FP16__) && defined(__AVX512VL__)

static inline __m128h halves(u32 pair) {
  return _mm_castsi128_ph(_mm_cvtsi32_si128((int)pair));
}

static inline u32 h2fma(u32 a, u32 b, u32 c) {
  const __m128h sums = _mm_fmadd_ph(halves(a), halves(b), halves(c));
  return (u32)_mm_cvtsi128_si32(_mm_castph_si128(sums));
}

#else

static inline __m128d halves_to_doubles(u32 pair) {
  return _mm_cvtps_pd(_mm_cvtph_ps(_mm_cvtsi32_si128((int)pair)));
}

static inline u32 h2fma(u32 a, u32 b, u32 c) {
  const __m128d exact =
      _mm_fmadd_pd(halves_to_doubles(a), halves_to_doubles(b), halves_to_doubles(c));
  const __m128 rounded = _mm_cvtpd_ps(exact);
  const __m128d back = _mm_cvtps_pd(rounded);
  const __m128d magnitude = _mm_castsi128_pd(_mm_set1_epi64x(0x7fffffffffffffffll));
  const __m128d further =
      _mm_cmpgt_pd(_mm_and_pd(back, magnitude), _mm_and_pd(exact, magnitude));
  const __m128i inexact =
      _mm_shuffle_epi32(_mm_castpd_si128(_mm_cmpneq_pd(back, exact)), 0x08);
  const __m128i over = _mm_shuffle_epi32(_mm_castpd_si128(further), 0x08);
  const __m128i toward_zero = _mm_add_epi32(_mm_castps_si128(rounded), over);
  const __m128i odd = _mm_or_si128(toward_zero, _mm_srli_epi32(inexact, 31));
  const __m128i halves = _mm_cvtps_ph(_mm_castsi128_ps(odd), _MM_FROUND_TO_NEAREST_INT);
  return (u32)_mm_cvtsi128_si32(halves);
}

#endif

#else  // the compiler's own halves: native on aarch64, slow elsewhere

#if defined(__aarch64__)
typedef __fp16 gpu_half;
#else
typedef _Float16 gpu_half;
#endif

static inline float h2f(u16 h) { return (float)gpu_sim::bits<gpu_half>(h); }
static inline u16 f2h(float f) { return gpu_sim::bits<u16>((gpu_half)f); }

static inline u16 fma_half(u16 a, u16 b, u16 c) {
  return gpu_sim::bits<u16>((gpu_half)__builtin_fma((double)h2f(a), (double)h2f(b), (double)h2f(c)));
}

static inline u32 h2fma(u32 a, u32 b, u32 c) {
  const u16 low = fma_half((u16)a, (u16)b, (u16)c);
  return low | (u32)fma_half((u16)(a >> 16), (u16)(b >> 16), (u16)(c >> 16)) << 16;
}

#endif
