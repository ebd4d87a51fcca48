// y[c] = W . x[c] + bias, W in N4 or Q4_K: weight = d * scale * code - dmin * min.
//
//   group    heads, scales [8 parts][4 rows](scale, min) in bytes, 4 planes of codes: one a row
//   word j   weights 8j .. 8j+7; pair k of them at bits 4k and 4k + 16
//
// Nibbles at bits 0 and 16 are a pair of halves as they are masked, nibbles at bits 4 and 20 one 16
// times as large, which has a sum of its own; a shift by 8 brings the other half of the word there.
// 4 masks, 1 shift and 4 multiply-adds for 8 weights. A chain of sums is 8 long.
#include "gemv.h"

struct FormN4 {
  static const u32 GROUP_BYTES = HEAD_BYTES + GROUP_PARTS * 8 + STRIP_ROWS * PLANE_BYTES;
  u32 head[4], scale[2], code[STRIP_ROWS][4];

  METHOD FormN4(const u8* group, u32 part_idx) {
    unpack128(load128(group), head);
    const uint2 scales = load64(group + HEAD_BYTES + part_idx * 8);
    scale[0] = scales.x;
    scale[1] = scales.y;
    const u8* codes = group + HEAD_BYTES + GROUP_PARTS * 8 + part_idx * 16;
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
    const float d = half_low(head[r]) * scale_byte(scale, r, 0);
    const float m = half_high(head[r]) * scale_byte(scale, r, 1);
    return fma32(d, product, fma32(-m, in.sums.x + in.sums.y, sum));
  }
};

GEMV_KERNELS(gemv_n4_f16, FormN4)
