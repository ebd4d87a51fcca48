// y[c] = W . x[c] + bias for the types without a kernel of their own.
//
//   group    heads, where scales are integers; scales; planes of low bits; planes of high bits
//   pair m   weights 2m and 2m + 1 of a part, in the low and the high half of a word:
//            4 low bits    word m / 4, from bit 4 (m % 4)        a plane for each row
//            2 low bits    word m / 8, from bit 2 (m % 8)        a plane for two rows
//            2 high bits   the same                              a plane for two rows
//            1 high bit    the only word, bit m                  a plane for four rows
//
//   scales of a part, for each row
//     FLOAT       d f16                                weight = d * (code - ZERO)
//     FLOAT_MIN   d, m f16                             d * code - m
//     ONE_MIN     scale, min: bytes                    d * scale * code - dmin * min
//     TWO         of the first, of the last 16: i8     d * scale * (code - ZERO)
//     TWO_MIN     the same, (scale | min << 4)         d * scale * code - dmin * min
//
// Where codes stand for steps, a nibble chooses a byte of a table of 16, by two byte permutes, and
// words hold weights in their order: nibble i of word j is weight 8j + i.
//
// These types have 4.3 bits or more, so a weight may cost the time of 4 instructions at least.
#include "gemv.h"

enum Scales { FLOAT, FLOAT_MIN, ONE_MIN, TWO, TWO_MIN };

struct NoSteps {
  static const bool ANY = false;
  METHOD static float factor() { return 1.f; }
  METHOD static u32 table(int) { return 0; }
  METHOD static u32 minus_zero() { return 0; }
};

// Steps made unsigned, the zero to take off, as a pair of subnormals, and the factor of all.
#define STEPS(name, a, b, c, d, minus, times)                                           \
  struct name {                                                                         \
    static const bool ANY = true;                                                       \
    METHOD static u32 table(int i) { return i == 0 ? a : i == 1 ? b : i == 2 ? c : d; } \
    METHOD static u32 minus_zero() { return minus; }                                    \
    METHOD static float factor() { return times; }                                      \
  };
STEPS(StepsIq4, 0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u, 0x80808080u, 1.f)
STEPS(StepsIq3Xxs, 0x9c948c84u, 0xbeb4aca4u, 0x646c747cu, 0x424c545cu, 0x80808080u, .25f)
STEPS(StepsIq3S, 0x17151311u, 0x1f1d1b19u, 0x090b0d0fu, 0x01030507u, 0x80108010u, 1.f)

// Bytes that the low 16 bits' four nibbles choose.
template <class Steps> DEVICE u32 look_up(u32 nibbles) {
  const u32 in_table = nibbles & 0x7777u;
  const u32 lower = permute(Steps::table(0), Steps::table(1), in_table);
  const u32 upper = permute(Steps::table(2), Steps::table(3), in_table);
  const u32 is_upper = permute(0x0000ff00u, 0, nibbles >> 3 & 0x1111u);
  return (lower & ~is_upper) | (upper & is_upper);
}

template <int LOW, int HIGH, Scales SCALES, int ZERO, class Steps> struct FormCodes {
  static const bool HAS_HEADS = SCALES == ONE_MIN || SCALES == TWO || SCALES == TWO_MIN;
  static const u32 SCALE_WORDS = SCALES == FLOAT_MIN ? 4 : 2;
  static const u32 SCALES_AT = HAS_HEADS ? HEAD_BYTES : 0;
  static const u32 CODES_AT = SCALES_AT + GROUP_PARTS * 4 * SCALE_WORDS;
  static const u32 LOW_WORDS = LOW, HIGH_WORDS = HIGH;
  static const u32 GROUP_BYTES = CODES_AT + (LOW + HIGH) * PLANE_BYTES;

  u32 head[4], scale[4], low[4 * LOW], high[4 * HIGH + 1];

  METHOD FormCodes(const u8* group, u32 part_idx) {
    if (HAS_HEADS) unpack128(load128(group), head);
    if (SCALE_WORDS == 4) {
      unpack128(load128(group + SCALES_AT + part_idx * 16), scale);
    } else {
      const uint2 scales = load64(group + SCALES_AT + part_idx * 8);
      scale[0] = scales.x;
      scale[1] = scales.y;
    }
    const u8* codes = group + CODES_AT + part_idx * 16;
#pragma unroll
    for (int i = 0; i < LOW; i++) unpack128(load128(codes + i * PLANE_BYTES), low + 4 * i);
#pragma unroll
    for (int i = 0; i < HIGH; i++) {
      unpack128(load128(codes + (LOW + i) * PLANE_BYTES), high + 4 * i);
    }
  }

  // Codes of pair m of a row, as subnormals.
  METHOD u32 pair(int r, int m) const {
    if (Steps::ANY) {
      const u32 word = low[4 * r + m / 4];
      const u32 bytes = look_up<Steps>(m % 4 < 2 ? word : word >> 16);
      const u32 spread = permute(bytes, 0, m % 2 ? 0x4342 : 0x4140);
      return h2fma(spread, PAIR_ONE, Steps::minus_zero());
    }
    u32 code = LOW == 4 ? low[4 * r + m / 4] >> (4 * (m % 4)) & 0x000f000fu
                        : low[2 * r + m / 8] >> (2 * (m % 8)) & 0x00030003u;
    if (HIGH == 1) code |= (high[r] >> m & 0x00010001u) << LOW;
    if (HIGH == 2) code |= (high[2 * r + m / 8] >> (2 * (m % 8)) & 0x00030003u) << LOW;
    return code;
  }

  METHOD float dot(int r, const Input& in, float sum) const {
    u32 halves[2] = {};
#pragma unroll
    for (int m = 0; m < 16; m++) {
      halves[m / 8] = h2fma(pair(r, m), in.x[m], halves[m / 8]);
    }
    const float first = fma32(-(float)ZERO, in.sums.x, sum_halves(halves[0]));
    const float last = fma32(-(float)ZERO, in.sums.y, sum_halves(halves[1]));
    const float d = half_low(head[r]) * Steps::factor(), dmin = half_high(head[r]);
    const u32 fields = scale[r / 2] >> (16 * (r % 2));
    if (SCALES == FLOAT) return fma32(h2f((u16)fields), first + last, sum);
    if (SCALES == FLOAT_MIN) {
      sum = fma32(-half_high(scale[r]), in.sums.x + in.sums.y, sum);
      return fma32(half_low(scale[r]), first + last, sum);
    }
    if (SCALES == ONE_MIN) {
      sum = fma32(-dmin * scale_byte(scale, r, 1), in.sums.x + in.sums.y, sum);
      return fma32(d * scale_byte(scale, r, 0), first + last, sum);
    }
    if (SCALES == TWO) {
      const float product = signed_scale_byte(scale, r, 1) * last;
      return fma32(d, fma32(signed_scale_byte(scale, r, 0), first, product), sum);
    }
    const u32 mins = fields >> 4;
    const float min = fma32((float)(mins & 15), in.sums.x, (float)(mins >> 8 & 15) * in.sums.y);
    const float product = fma32((float)(fields & 15), first, (float)(fields >> 8 & 15) * last);
    return fma32(d, product, fma32(-dmin, min, sum));
  }
};

typedef FormCodes<4, 0, FLOAT_MIN, 0, NoSteps> FormQ4_1;
typedef FormCodes<4, 1, FLOAT, 16, NoSteps> FormQ5_0;
typedef FormCodes<4, 1, FLOAT_MIN, 0, NoSteps> FormQ5_1;
typedef FormCodes<2, 0, TWO_MIN, 0, NoSteps> FormQ2K;
typedef FormCodes<4, 1, ONE_MIN, 0, NoSteps> FormQ5K;
typedef FormCodes<4, 2, TWO, 32, NoSteps> FormQ6K;
typedef FormCodes<4, 0, FLOAT, 0, StepsIq4> FormIq4Nl;
typedef FormCodes<4, 0, TWO, 0, StepsIq4> FormIq4Xs;
typedef FormCodes<4, 0, TWO, 0, StepsIq3Xxs> FormIq3Xxs;
typedef FormCodes<4, 0, TWO, 0, StepsIq3S> FormIq3S;

GEMV_KERNELS_FEW(gemv_q4_1_f16, FormQ4_1)
GEMV_KERNELS_FEW(gemv_q5_0_f16, FormQ5_0)
GEMV_KERNELS_FEW(gemv_q5_1_f16, FormQ5_1)
GEMV_KERNELS_FEW(gemv_q2_k_f16, FormQ2K)
GEMV_KERNELS_FEW(gemv_q5_k_f16, FormQ5K)
GEMV_KERNELS_FEW(gemv_q6_k_f16, FormQ6K)
GEMV_KERNELS_FEW(gemv_iq4_nl_f16, FormIq4Nl)
GEMV_KERNELS_FEW(gemv_iq4_xs_f16, FormIq4Xs)
GEMV_KERNELS_FEW(gemv_iq3_xxs_f16, FormIq3Xxs)
GEMV_KERNELS_FEW(gemv_iq3_s_f16, FormIq3S)
