// y[c] = W . x[c] + bias, W in N3: weight = d * scale * code - dmin * min.
//
//   group    heads, scales [8 parts][4 rows](scale, min) in bytes, 3 planes of codes (codes3.h)
#include "codes3.h"
#include "gemv.h"

struct FormN3 : LanePart<true, 2, CODES3_PLANES> {
  struct Row {
    u32 pair[16];
    float d, m;
  };

  METHOD FormN3(const u8* group, u32 part_idx) : LanePart(group, part_idx) {}

  METHOD Row row(int r) const {
    Row row;
    pairs3(code + 3 * r, row.pair);
    row.d = d(r) * scale_byte(scale, r, 0);
    row.m = dmin(r) * scale_byte(scale, r, 1);
    return row;
  }

  METHOD static float dot(const Row& row, const Input& in, float sum) {
    const float product = dot3<0, 16>(row.pair, in.x);
    return fma32(row.d, product, fma32(-row.m, in.sums.x + in.sums.y, sum));
  }
};

MUL_KERNELS(n3, FormN3)
