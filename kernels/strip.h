// Strips: how matrices and their inputs lie in the memory of the device.
//
//   strip    4 rows, from their first weight to their last; rows past the matrix are zeros
//   group    8 parts of the 4 rows, everything of it together; the last is filled with zeros
//   part     32 weights of a row: the share of one lane, of all 4 rows
//
//   group of a matrix    heads     4 x (d, dmin)             16 bytes, types with integer scales
//                        scales    8 parts x 4 rows          64 or 128 bytes
//                        codes     planes [8 parts, 16 bytes]
//   group of an input    halves    4 planes [8 parts, 16 bytes]: plane j has values 8j .. 8j+7
//                        sums      8 parts x (first 16, last 16), f32
//
// A load of 16 bytes by each of 8 lanes is 128 bytes in a row, so every request is whole. Addresses
// within a group are constants.
//
// An input column is scaled by a power of two that brings its largest value into 2^14 .. 2^15, and
// rounded to halves. Codes are not converted: an integer q in the mantissa of a half is the
// subnormal q * 2^-24, which the device multiplies as it is. Sums carry the same 2^-24, and `unit`
// in the column's first word undoes both.
#pragma once
#include "gpu.h"

#define STRIP_ROWS 4
#define GROUP_PARTS 8
#define PART_LEN 32
#define HEAD_BYTES 16
#define PLANE_BYTES (GROUP_PARTS * 16)
#define INPUT_HEADER_BYTES 16
#define SUMS_AT (4 * PLANE_BYTES)
#define INPUT_GROUP_BYTES (4 * PLANE_BYTES + GROUP_PARTS * 8)

// Bytes from one input column to the next.
DEVICE u32 input_bytes(u32 n_group) { return INPUT_HEADER_BYTES + n_group * INPUT_GROUP_BYTES; }

DEVICE void unpack128(uint4 v, u32* out) {
  out[0] = v.x;
  out[1] = v.y;
  out[2] = v.z;
  out[3] = v.w;
}

// A part of an input column.
struct Input {
  u32 x[16];    // 32 values as pairs of halves
  float2 sums;  // of the first 16 and of the last 16
};

DEVICE Input load_input(const u8* group, u32 part_idx) {
  Input in;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    unpack128(load128(group + part_idx * 16 + j * PLANE_BYTES), in.x + 4 * j);
  }
  const uint2 sums = load64(group + SUMS_AT + part_idx * 8);
  in.sums = {as_float(sums.x), as_float(sums.y)};
  return in;
}

// The same out of shared memory.
DEVICE Input shared_input(const u8* group, u32 part_idx) {
  Input in;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    unpack128(shared128(group + part_idx * 16 + j * PLANE_BYTES), in.x + 4 * j);
  }
  const float* sums = (const float*)(group + SUMS_AT + part_idx * 8);
  in.sums = {sums[0], sums[1]};
  return in;
}

DEVICE float sum_halves(u32 pair) { return half_low(pair) + half_high(pair); }

// The two bytes of scales that a row has of a part; rows 0 and 1 are in the first word.
DEVICE float scale_byte(const u32* words, int r, int i) {
  const u32 word = words[r / 2];
  return r % 2 ? (i ? byte_to_float<3>(word) : byte_to_float<2>(word))
               : (i ? byte_to_float<1>(word) : byte_to_float<0>(word));
}

DEVICE float signed_scale_byte(const u32* words, int r, int i) {
  const u32 word = words[r / 2];
  return r % 2 ? (i ? signed_byte_to_float<3>(word) : signed_byte_to_float<2>(word))
               : (i ? signed_byte_to_float<1>(word) : signed_byte_to_float<0>(word));
}

#define PAIR_ONE 0x3c003c00u
#define PAIR_1_8 0x30003000u
#define PAIR_1_16 0x2c002c00u
#define PAIR_1_64 0x24002400u

// What one lane holds of a group: the heads, and its part's scales and planes, of 4 rows.
template <bool HEADS, int SCALE_WORDS, int PLANES> struct LanePart {
  static const u32 SCALES_AT = HEADS ? HEAD_BYTES : 0;
  static const u32 CODES_AT = SCALES_AT + GROUP_PARTS * 4 * SCALE_WORDS;
  static const u32 GROUP_BYTES = CODES_AT + PLANES * PLANE_BYTES;
  u32 head[4], scale[4], code[4 * PLANES];

  METHOD LanePart(const u8* group, u32 part_idx) {
    if (HEADS) unpack128(load128(group), head);
    if (SCALE_WORDS == 4) {
      unpack128(load128(group + SCALES_AT + part_idx * 16), scale);
    } else {
      const uint2 scales = load64(group + SCALES_AT + part_idx * 8);
      scale[0] = scales.x;
      scale[1] = scales.y;
    }
#pragma unroll
    for (int i = 0; i < PLANES; i++) {
      unpack128(load128(group + CODES_AT + part_idx * 16 + i * PLANE_BYTES), code + 4 * i);
    }
  }

  // Of row r: the factors in the head, and a scale that is an f16.
  METHOD float d(int r) const { return half_low(head[r]); }
  METHOD float dmin(int r) const { return half_high(head[r]); }
  METHOD float half_scale(int r) const {
    return r % 2 ? half_high(scale[r / 2]) : half_low(scale[r / 2]);
  }
};
