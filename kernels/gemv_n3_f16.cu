// y[c] = W . x[c] + bias, W in N3: weight = d * scale * code - dmin * min.
//
//   group    heads, scales [8 parts][4 rows](scale, min) in bytes, 3 planes of codes (codes3.h)
#include "codes3.h"
#include "gemv.h"

struct FormN3 {
  static const u32 GROUP_BYTES = HEAD_BYTES + GROUP_PARTS * 8 + CODES3_PLANES * PLANE_BYTES;
  u32 head[4], scale[2], code[3 * STRIP_ROWS];

  METHOD FormN3(const u8* group, u32 part_idx) {
    unpack128(load128(group), head);
    const uint2 scales = load64(group + HEAD_BYTES + part_idx * 8);
    scale[0] = scales.x;
    scale[1] = scales.y;
    const u8* codes = group + HEAD_BYTES + GROUP_PARTS * 8 + part_idx * 16;
#pragma unroll
    for (int i = 0; i < CODES3_PLANES; i++) {
      unpack128(load128(codes + i * PLANE_BYTES), code + 4 * i);
    }
  }

  METHOD float dot(int r, const Input& in, float sum) const {
    u32 sums[3] = {};
#pragma unroll
    for (int w = 0; w < 3; w++) {
      dot3_first(code[3 * r + w], in.x + 5 * w, sums);
      dot3_last(code[3 * r + w], in.x + 5 * w, sums);
    }
    dot3_spare(code + 3 * r, in.x[15], sums);
    const float d = half_low(head[r]) * scale_byte(scale, r, 0);
    const float m = half_high(head[r]) * scale_byte(scale, r, 1);
    return fma32(d, dot3_fold(sums), fma32(-m, in.sums.x + in.sums.y, sum));
  }
};

GEMV_KERNELS(gemv_n3_f16, FormN3)
