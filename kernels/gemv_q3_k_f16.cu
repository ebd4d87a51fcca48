// y[c] = W . x[c] + bias, W in Q3_K: weight = d * scale * (code - 4), a scale for 16 weights.
//
//   group    heads (dmin is 0), scales [8 parts][4 rows](first 16, last 16) in signed bytes,
//            3 planes of codes (codes3.h): pairs 0 to 7 are the first 16 weights
#include "codes3.h"
#include "gemv.h"

struct FormQ3K : LanePart<true, 2, CODES3_PLANES> {
  struct Row {
    u32 pair[16];
    float d, first, last;
  };

  METHOD FormQ3K(const u8* group, u32 part_idx) : LanePart(group, part_idx) {}

  METHOD Row row(int r) const {
    Row row;
    pairs3(code + 3 * r, row.pair);
    row.d = d(r);
    row.first = signed_scale_byte(scale, r, 0);
    row.last = signed_scale_byte(scale, r, 1);
    return row;
  }

  METHOD static float dot(const Row& row, const Input& in, float sum) {
    const float first = fma32(-4.f, in.sums.x, dot3<0, 8>(row.pair, in.x));
    const float last = fma32(-4.f, in.sums.y, dot3<8, 16>(row.pair, in.x));
    return fma32(row.d, fma32(last, row.last, first * row.first), sum);
  }
};

MUL_KERNELS(q3_k, FormQ3K)
