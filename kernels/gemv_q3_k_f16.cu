// y[c] = W . x[c] + bias, W in Q3_K: weight = d * scale * (code - 4), a scale for 16 weights.
//
//   group    heads (dmin is 0), scales [8 parts][4 rows](first 16, last 16) in signed bytes,
//            3 planes of codes (codes3.h)
//
// The halves of a part end within the second word: pairs 5 to 7 are of the first, 8 and 9 of the
// last.
#include "codes3.h"
#include "gemv.h"

struct FormQ3K {
  static const u32 GROUP_BYTES = HEAD_BYTES + GROUP_PARTS * 8 + CODES3_PLANES * PLANE_BYTES;
  u32 head[4], scale[2], code[3 * STRIP_ROWS];

  METHOD FormQ3K(const u8* group, u32 part_idx) {
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
    const u32* words = code + 3 * r;
    u32 first[3] = {}, last[3] = {};
    dot3_first(words[0], in.x, first);
    dot3_last(words[0], in.x, first);
    dot3_first(words[1], in.x + 5, first);
    dot3_last(words[1], in.x + 5, last);
    dot3_first(words[2], in.x + 10, last);
    dot3_last(words[2], in.x + 10, last);
    dot3_spare(words, in.x[15], last);
    const float first_scale = signed_scale_byte(scale, r, 0);
    const float last_scale = signed_scale_byte(scale, r, 1);
    const float product = fma32(-4.f, in.sums.x, dot3_fold(first)) * first_scale;
    const float both = fma32(fma32(-4.f, in.sums.y, dot3_fold(last)), last_scale, product);
    return fma32(half_low(head[r]), both, sum);
  }
};

GEMV_KERNELS(gemv_q3_k_f16, FormQ3K)
