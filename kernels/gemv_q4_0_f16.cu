// y[c] = W . x[c] + bias, W in Q4_0: weight = d * (code - 8).
//
//   group    scales [8 parts][4 rows] f16, then 4 planes of codes (codes4.h)
#include "codes4.h"
#include "gemv.h"

struct FormQ4_0 : LanePart<false, 2, CODES4_PLANES> {
  struct Row {
    u32 pair[16];
    float d;
  };

  METHOD FormQ4_0(const u8* group, u32 part_idx) : LanePart(group, part_idx) {}

  METHOD Row row(int r) const {
    Row row;
    pairs4(code + 4 * r, row.pair);
    row.d = half_scale(r);
    return row;
  }

  METHOD static float dot(const Row& row, const Input& in, float sum) {
    const float product = dot4(row.pair, in.x);
    return fma32(row.d, fma32(-8.f, in.sums.x + in.sums.y, product), sum);
  }
};

MUL_KERNELS(q4_0, FormQ4_0)
