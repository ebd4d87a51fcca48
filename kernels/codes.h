// The form of the types without a kernel of their own: codes of 2 to 6 bits, or of steps.
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
#pragma once
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

template <int LOW, int HIGH, Scales SCALES, int ZERO, class Steps>
struct FormCodes
    : LanePart<SCALES == ONE_MIN || SCALES == TWO || SCALES == TWO_MIN,
               SCALES == FLOAT_MIN ? 4 : 2, LOW + HIGH> {
  typedef LanePart<SCALES == ONE_MIN || SCALES == TWO || SCALES == TWO_MIN,
                   SCALES == FLOAT_MIN ? 4 : 2, LOW + HIGH>
      Base;

  struct Row {
    u32 pair[16];
    float d, m;         // m: what is taken off, for each of the sums
    float first, last;  // scales and minima of the halves, where there are two
    float first_min, last_min;
  };

  METHOD FormCodes(const u8* group, u32 part_idx) : Base(group, part_idx) {}

  // Codes of pair m of a row, as subnormals.
  METHOD u32 pair(int r, int m) const {
    const u32* low = Base::code;
    const u32* high = Base::code + 4 * LOW;
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

  METHOD Row row(int r) const {
    Row row = {};
#pragma unroll
    for (int m = 0; m < 16; m++) row.pair[m] = pair(r, m);
    const u32* scale = Base::scale;
    if (SCALES == FLOAT) row.d = Base::half_scale(r);
    if (SCALES == FLOAT_MIN) {
      row.d = half_low(scale[r]);
      row.m = half_high(scale[r]);
    }
    if (SCALES == ONE_MIN) {
      row.d = Base::d(r) * scale_byte(scale, r, 0);
      row.m = Base::dmin(r) * scale_byte(scale, r, 1);
    }
    if (SCALES == TWO) {
      row.d = Base::d(r) * Steps::factor();
      row.first = signed_scale_byte(scale, r, 0);
      row.last = signed_scale_byte(scale, r, 1);
    }
    if (SCALES == TWO_MIN) {
      const u32 fields = scale[r / 2] >> (16 * (r % 2)), mins = fields >> 4;
      row.d = Base::d(r);
      row.m = Base::dmin(r);
      row.first = (float)(fields & 15);
      row.last = (float)(fields >> 8 & 15);
      row.first_min = (float)(mins & 15);
      row.last_min = (float)(mins >> 8 & 15);
    }
    return row;
  }

  METHOD static float dot(const Row& row, const Input& in, float sum) {
    u32 halves[2] = {};
#pragma unroll
    for (int m = 0; m < 16; m++) halves[m / 8] = h2fma(row.pair[m], in.x[m], halves[m / 8]);
    const float first = fma32(-(float)ZERO, in.sums.x, sum_halves(halves[0]));
    const float last = fma32(-(float)ZERO, in.sums.y, sum_halves(halves[1]));
    if (SCALES == FLOAT) return fma32(row.d, first + last, sum);
    if (SCALES == FLOAT_MIN || SCALES == ONE_MIN) {
      return fma32(row.d, first + last, fma32(-row.m, in.sums.x + in.sums.y, sum));
    }
    const float product = fma32(row.first, first, row.last * last);
    if (SCALES == TWO) return fma32(row.d, product, sum);
    const float min = fma32(row.first_min, in.sums.x, row.last_min * in.sums.y);
    return fma32(row.d, product, fma32(-row.m, min, sum));
  }
};
