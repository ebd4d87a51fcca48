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

  struct Row {
    float weight[PART_LEN];
  };

  METHOD FormFloat(const u8* group, u32 part_idx) : planes(group + part_idx * 16) {}

  METHOD Row row(int r) const {
    Row row;
#pragma unroll
    for (int i = 0; i < N_PLANE; i++) {
      u32 words[4];
      unpack128(load128(planes + (r * N_PLANE + i) * PLANE_BYTES), words);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const u32 w = words[k];
        if (KIND == F32) {
          row.weight[4 * i + k] = as_float(w);
        } else {
          row.weight[8 * i + 2 * k] = KIND == F16 ? half_low(w) : as_float(w << 16);
          row.weight[8 * i + 2 * k + 1] = KIND == F16 ? half_high(w) : as_float(w & 0xffff0000u);
        }
      }
    }
    return row;
  }

  METHOD static float dot(const Row& row, const Input& in, float sum) {
    float part = 0.f;
#pragma unroll
    for (int m = 0; m < 16; m++) {
      part = fma32(row.weight[2 * m], half_low(in.x[m]), part);
      part = fma32(row.weight[2 * m + 1], half_high(in.x[m]), part);
    }
    return fma32(part, 5.9604645e-8f, sum);  // 2^-24, as all sums have it
  }
};

typedef FormFloat<F16> FormF16;
typedef FormFloat<BF16> FormBf16;
typedef FormFloat<F32> FormF32;
MUL_KERNELS_FEW(f16, FormF16)
MUL_KERNELS_FEW(bf16, FormBf16)
MUL_KERNELS_FEW(f32, FormF32)
