// Runs a grid of thread blocks on the processor.
#pragma once
#include <string>

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#include "gpu_sim.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace gpu_sim {

// The order in which warps of a block and lanes of a warp run; in reverse also blocks of a grid. A
// kernel that gives other results in another order lacks a barrier.
struct Order {
  enum Kind { FORWARD, REVERSE, MIXED } kind = FORWARD;
  u32 seed = 0;
};

// A registered kernel and how many arguments it has.
struct Registered {
  Thunk thunk;
  u32 n_arg;
};

// The registered kernel of this name; no thunk if there is none.
Registered find_kernel(const std::string& name);

void run_grid(const char* name, Thunk thunk, Index grid, Index block, void** args, Order order);

}  // namespace gpu_sim
