// Codes of 4 bits: 32 of a row in the four words of a plane.
//
//   word j   weights 8j .. 8j+7; pair k of them at bits 4k and 4k + 16
//
// Nibbles at bits 0 and 16 are a pair of halves as they are masked, nibbles at bits 4 and 20 one 16
// times as large, which has a sum of its own; a shift by 8 brings the other half of the word there.
// 4 masks, 1 shift and 4 multiply-adds for 8 weights. A chain of sums is 8 long.
#pragma once
#include "strip.h"

#define CODES4_PLANES STRIP_ROWS

// The 16 pairs of four words: the odd ones 16 times as large.
DEVICE void pairs4(const u32* words, u32* pair) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const u32 low = words[j], high = low >> 8;
    pair[4 * j] = low & 0x000f000fu;
    pair[4 * j + 1] = low & 0x00f000f0u;
    pair[4 * j + 2] = high & 0x000f000fu;
    pair[4 * j + 3] = high & 0x00f000f0u;
  }
}

DEVICE float dot4(const u32* pair, const u32* x) {
  u32 ones = 0, sixteens = 0;
#pragma unroll
  for (int m = 0; m < 16; m += 2) {
    ones = h2fma(pair[m], x[m], ones);
    sixteens = h2fma(pair[m + 1], x[m + 1], sixteens);
  }
  return sum_halves(h2fma(sixteens, PAIR_1_16, ones));
}
