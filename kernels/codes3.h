// Codes of 3 bits: 32 of a row in three words.
//
//   bit of a word    0   3   6   9  12     15              the same 16 higher, of the other half
//   word w, pair     5w  5w+1  5w+2  5w+3  5w+4    bit w of pair 15
//
// Ten bits are a mantissa, so three fields of a word are pairs of halves as they are masked: times
// 1, 8 and 64, with a sum for each. A shift by 9 brings the other two there.
//
// The 12 words of a part's four rows are 3 planes, row after row.
#pragma once
#include "strip.h"

#define CODES3_PLANES 3

// The 16 pairs of three words, times 1, 8, 64, 1, 8 from each word, and pair 15.
DEVICE void pairs3(const u32* words, u32* pair) {
#pragma unroll
  for (int w = 0; w < 3; w++) {
    const u32 word = words[w], rest = word >> 9;
    pair[5 * w] = word & 0x00070007u;
    pair[5 * w + 1] = word & 0x00380038u;
    pair[5 * w + 2] = word & 0x01c001c0u;
    pair[5 * w + 3] = rest & 0x00070007u;
    pair[5 * w + 4] = rest & 0x00380038u;
  }
  pair[15] = (words[0] >> 15 & 0x00010001u) | (words[1] >> 14 & 0x00020002u) |
             (words[2] >> 13 & 0x00040004u);
}

// Pairs START to END times the input's.
template <int START, int END> DEVICE float dot3(const u32* pair, const u32* x) {
  u32 sum[3] = {};
#pragma unroll
  for (int m = START; m < END; m++) {
    u32& s = sum[m % 5 % 3];
    s = h2fma(pair[m], x[m], s);
  }
  return sum_halves(h2fma(sum[2], PAIR_1_64, h2fma(sum[1], PAIR_1_8, sum[0])));
}
