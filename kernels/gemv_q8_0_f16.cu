// y[c] = W . x[c] + bias, W in Q8_0: weight = d * code.
//
//   group    scales [8 parts][4 rows] f16, 8 planes of codes: two a row, 16 weights each, in their
//            order, the sign bit flipped
//
// A byte permute makes a pair of halves of two bytes, an addition takes the 128 off exactly: the
// sums are of small signed numbers, where codes with their offset would lose three bits. 1.5
// instructions for a weight, of about 8 that its bytes leave time for.
#include "gemv.h"

struct FormQ8_0 {
  static const u32 GROUP_BYTES = GROUP_PARTS * 8 + 2 * STRIP_ROWS * PLANE_BYTES;
  u32 scale[2], code[STRIP_ROWS][8];

  METHOD FormQ8_0(const u8* group, u32 part_idx) {
    const uint2 scales = load64(group + part_idx * 8);
    scale[0] = scales.x;
    scale[1] = scales.y;
    const u8* codes = group + GROUP_PARTS * 8 + part_idx * 16;
#pragma unroll
    for (int r = 0; r < STRIP_ROWS; r++) {
      unpack128(load128(codes + 2 * r * PLANE_BYTES), code[r]);
      unpack128(load128(codes + (2 * r + 1) * PLANE_BYTES), code[r] + 4);
    }
  }

  METHOD float dot(int r, const Input& in, float sum) const {
    const u32 minus_128 = 0x80808080u;  // as subnormals: -128 * 2^-24
    u32 even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const u32 word = code[r][i];
      const u32 low = h2fma(permute(word, 0, 0x4140), PAIR_ONE, minus_128);
      const u32 high = h2fma(permute(word, 0, 0x4342), PAIR_ONE, minus_128);
      even = h2fma(low, in.x[2 * i], even);
      odd = h2fma(high, in.x[2 * i + 1], odd);
    }
    const float d = r % 2 ? half_high(scale[r / 2]) : half_low(scale[r / 2]);
    return fma32(d, sum_halves(h2fma(odd, PAIR_ONE, even)), sum);
  }
};

GEMV_KERNELS(gemv_q8_0_f16, FormQ8_0)
