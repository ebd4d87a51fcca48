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

// Pairs 0 to 4 of a word times the input's, added to the sums of fields times 1, 8 and 64.
DEVICE void dot3_first(u32 word, const u32* x, u32 (&sum)[3]) {
  sum[0] = h2fma(word & 0x00070007u, x[0], sum[0]);
  sum[1] = h2fma(word & 0x00380038u, x[1], sum[1]);
  sum[2] = h2fma(word & 0x01c001c0u, x[2], sum[2]);
}

DEVICE void dot3_last(u32 word, const u32* x, u32 (&sum)[3]) {
  const u32 rest = word >> 9;
  sum[0] = h2fma(rest & 0x00070007u, x[3], sum[0]);
  sum[1] = h2fma(rest & 0x00380038u, x[4], sum[1]);
}

// Pair 15, a bit in each word.
DEVICE void dot3_spare(const u32* words, u32 x, u32 (&sum)[3]) {
  const u32 code = (words[0] >> 15 & 0x00010001u) | (words[1] >> 14 & 0x00020002u) |
                   (words[2] >> 13 & 0x00040004u);
  sum[0] = h2fma(code, x, sum[0]);
}

DEVICE float dot3_fold(const u32 (&sum)[3]) {
  return sum_halves(h2fma(sum[2], PAIR_1_64, h2fma(sum[1], PAIR_1_8, sum[0])));
}
