// y[c] = W . x[c] + bias, W in F16, BF16 or F32, multiplied and summed in f32.
//
//   group    planes of 16 bytes: for each row its 32 weights in their order, as the file has them
//
// Rounding W to halves would bring a scale for each matrix; these matrices are few and small, and
// 16 bits leave time for 15 instructions.
#include "gemv.h"

enum Kind { F16 = 2, BF16 = 3, F32 = 4 };

template <int KIND> struct FormFloat {
  static const int N_PLANE = KIND == F32 ? 8 : 4;
  static const u32 GROUP_BYTES = STRIP_ROWS * N_PLANE * PLANE_BYTES;
  const u8* planes;

  METHOD FormFloat(const u8* group, u32 part_idx) : planes(group + part_idx * 16) {}

  METHOD float dot(int r, const Input& in, float sum) const {
    float part = 0.f;
#pragma unroll
    for (int i = 0; i < N_PLANE; i++) {
      u32 words[4];
      unpack128(load128(planes + (r * N_PLANE + i) * PLANE_BYTES), words);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        if (KIND == F32) {
          const u32 pair = in.x[2 * i + k / 2];
          part = fma32(as_float(words[k]), k % 2 ? half_high(pair) : half_low(pair), part);
        } else {
          const u32 w = words[k], pair = in.x[4 * i + k];
          const float low = KIND == F16 ? half_low(w) : as_float(w << 16);
          const float high = KIND == F16 ? half_high(w) : as_float(w & 0xffff0000u);
          part = fma32(high, half_high(pair), fma32(low, half_low(pair), part));
        }
      }
    }
    return fma32(part, 5.9604645e-8f, sum);  // 2^-24, as all sums have it
  }
};

typedef FormFloat<F16> FormF16;
typedef FormFloat<BF16> FormBf16;
typedef FormFloat<F32> FormF32;
GEMV_KERNELS_FEW(gemv_f16_f16, FormF16)
GEMV_KERNELS_FEW(gemv_bf16_f16, FormBf16)
GEMV_KERNELS_FEW(gemv_f32_f16, FormF32)
