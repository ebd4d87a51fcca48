// y[c] = W . x[c] + bias, W in N4 or Q4_K: weight = d * scale * code - dmin * min.
//
//   group    heads, scales [8 parts][4 rows](scale, min) in bytes, 4 planes of codes (codes4.h)
#include "codes4.h"
#include "gemv.h"

struct FormN4 : LanePart<true, 2, CODES4_PLANES> {
  struct Row {
    u32 pair[16];
    float d, m;
  };

  METHOD FormN4(const u8* group, u32 part_idx) : LanePart(group, part_idx) {}

  METHOD Row row(int r) const {
    Row row;
    pairs4(code + 4 * r, row.pair);
    row.d = d(r) * scale_byte(scale, r, 0);
    row.m = dmin(r) * scale_byte(scale, r, 1);
    return row;
  }

  METHOD static float dot(const Row& row, const Input& in, float sum) {
    const float product = dot4(row.pair, in.x);
    return fma32(row.d, product, fma32(-row.m, in.sums.x + in.sums.y, sum));
  }
};

MUL_KERNELS(n4, FormN4)
