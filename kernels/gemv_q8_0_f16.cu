// y[c] = W . x[c] + bias, W in Q8_0: weight = d * code.
//
//   group    scales [8 parts][4 rows] f16, 8 planes of codes: two a row, 16 weights each, in their
//            order, the sign bit flipped
//
// A byte permute makes a pair of halves of two bytes, an addition takes the 128 off exactly: the
// sums are of small signed numbers, where codes with their offset would lose three bits. 1.5
// instructions for a weight, of about 8 that its bytes leave time for.
#include "gemv.h"

struct FormQ8_0 : LanePart<false, 2, 2 * STRIP_ROWS> {
  struct Row {
    u32 pair[16];
    float d;
  };

  METHOD FormQ8_0(const u8* group, u32 part_idx) : LanePart(group, part_idx) {}

  METHOD Row row(int r) const {
    const u32 minus_128 = 0x80808080u;  // as subnormals: -128 * 2^-24
    Row row;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const u32 word = code[8 * r + i];
      row.pair[2 * i] = h2fma(permute(word, 0, 0x4140), PAIR_ONE, minus_128);
      row.pair[2 * i + 1] = h2fma(permute(word, 0, 0x4342), PAIR_ONE, minus_128);
    }
    row.d = half_scale(r);
    return row;
  }

  METHOD static float dot(const Row& row, const Input& in, float sum) {
    u32 even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      even = h2fma(row.pair[2 * i], in.x[2 * i], even);
      odd = h2fma(row.pair[2 * i + 1], in.x[2 * i + 1], odd);
    }
    return fma32(row.d, sum_halves(h2fma(odd, PAIR_ONE, even)), sum);
  }
};

MUL_KERNELS(q8_0, FormQ8_0)
