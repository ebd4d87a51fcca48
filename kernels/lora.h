// What both kernels for LoRA adapters read: the pairs of a weight, and which of them a row asks for.
//
//   pairs [n_slot]     a slot for each adapter that is loaded
//   uses [n]           one for each row; a row that asks for several has one in each of several launches
//
// All of it lies in memory, so that a recorded launch serves rows that ask for other adapters.
#pragma once
#include "gpu.h"

#define NO_SLOT 0xffffffffu

// A [rank, n_in] and B [rank, n_out], f32; B is transposed, so that lanes read what lies together.
struct Pair {
  u64 a, b;     // addresses
  u32 rank;     // 0 where the adapter does not change this weight
  float scale;  // alpha / rank
};

struct Use {
  u32 slot;  // or NO_SLOT
  float scale;
};

// The pair that a row asks for; of rank 0 where it asks for none.
DEVICE Pair pair_of(const Pair* pairs, Use use) {
  if (use.slot == NO_SLOT) return {0, 0, 0, 0.f};
  return pairs[use.slot];
}
