// y[c] = W . x[c] + bias, W in Q4_0: weight = d * (code - 8).
//
//   group    scales [8 parts][4 rows] f16, then 4 planes of codes as in gemv_n4_f16.cu
#include "gemv.h"

struct FormQ4_0 {
  static const u32 GROUP_BYTES = GROUP_PARTS * 8 + STRIP_ROWS * PLANE_BYTES;
  u32 scale[2], code[STRIP_ROWS][4];

  METHOD FormQ4_0(const u8* group, u32 part_idx) {
    const uint2 scales = load64(group + part_idx * 8);
    scale[0] = scales.x;
    scale[1] = scales.y;
    const u8* codes = group + GROUP_PARTS * 8 + part_idx * 16;
#pragma unroll
    for (int r = 0; r < STRIP_ROWS; r++) unpack128(load128(codes + r * PLANE_BYTES), code[r]);
  }

  METHOD float dot(int r, const Input& in, float sum) const {
    u32 ones = 0, sixteens = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const u32 low = code[r][j], high = low >> 8;
      ones = h2fma(low & 0x000f000fu, in.x[4 * j], ones);
      sixteens = h2fma(low & 0x00f000f0u, in.x[4 * j + 1], sixteens);
      ones = h2fma(high & 0x000f000fu, in.x[4 * j + 2], ones);
      sixteens = h2fma(high & 0x00f000f0u, in.x[4 * j + 3], sixteens);
    }
    const float product = sum_halves(h2fma(sixteens, PAIR_1_16, ones));
    const float d = r % 2 ? half_high(scale[r / 2]) : half_low(scale[r / 2]);
    return fma32(d, fma32(-8.f, in.sums.x + in.sums.y, product), sum);
  }
};

GEMV_KERNELS(gemv_q4_0_f16, FormQ4_0)
