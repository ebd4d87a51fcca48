// What a kernel file may use, in three lines of meaning: words and halves, loads, lanes.
//
//   clang, no CUDA toolkit        gpu_device.h     PTX for sm_53, what ships
//   g++ or clang with GPU_SIM     sim/gpu_sim.h    the same source on the processor, what tests run
//
// A half lives in the low or the high 16 bits of a u32; the arithmetic on such pairs is the
// device's own (one rounding for each operation, subnormals kept), and the simulator has its bits.
// Whatever the two headers do not both have, a kernel may not use. Shared memory is declared in the
// kernel itself and handed on: g++ does not put that of a template where the simulator clears it.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(GPU_SIM)
#include "sim/gpu_sim.h"
#else
#include "gpu_device.h"
#endif

#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define FULL_WARP 0xffffffffu
#define WARP 32

DEVICE float half_low(u32 pair) { return h2f((u16)pair); }
DEVICE float half_high(u32 pair) { return h2f((u16)(pair >> 16)); }

// Two floats as a pair of halves, the first one low.
DEVICE u32 pack_halves(float low, float high) { return f2h(low) | (u32)f2h(high) << 16; }

DEVICE float as_float(u32 bits) {
  union { u32 u; float f; } both;
  both.u = bits;
  return both.f;
}

DEVICE u32 as_bits(float value) {
  union { u32 u; float f; } both;
  both.f = value;
  return both.u;
}

DEVICE float max_float(float a, float b) { return a > b ? a : b; }

// The sum over a warp, in every lane, always in the same order.
DEVICE float warp_sum(float v) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) v += __shfl_xor_sync(FULL_WARP, v, step);
  return v;
}

DEVICE float warp_max(float v) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) {
    v = max_float(v, __shfl_xor_sync(FULL_WARP, v, step));
  }
  return v;
}
