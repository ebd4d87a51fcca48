// The simulator's half of gpu.h: lets a kernel file compile as plain C++ and run on the processor.
//
// A thread block is one thread of the operating system, its CUDA threads are fibers on it. So a
// `__shared__` array is a static thread_local, and the simulator has no data races of its own;
// those of a kernel show as results that depend on the order in which fibers run.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

struct __align__(8) uint2 { u32 x, y; };
struct __align__(16) uint4 { u32 x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };

namespace gpu_sim {

struct Index { u32 x, y, z; };
enum State : u8 { READY, AT_WARP, AT_BLOCK, DONE };

// Mailboxes of a warp's shuffles. There are two, so that a lane may write its next value while
// slower lanes read the last one; `seq` says of which operation a value is.
struct Warp {
  u32 value[2][32];
  u32 seq[2][32];
};

struct Fiber {
  void* stack;
  Warp* warp;
  Index thread;
  u32 mask, seq;
  u8 lane;
  State state;
};

struct Context {
  Fiber* fiber;
  void* scheduler_stack;
  Index block, block_dim, grid_dim;
  const char* kernel;
};
extern thread_local Context context;

// Back to the scheduler, until what `state` waits for has happened.
void yield(State state);
// Ends the program with the kernel, block and thread that broke a rule of the device.
[[noreturn]] void fail(const char* what);

template <class T, class U> inline T bits(U from) {
  static_assert(sizeof(T) == sizeof(U), "same size");
  T to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline u32 exchange(u32 mask, u32 value, u32 source) {
  Fiber* fiber = context.fiber;
  const u32 seq = ++fiber->seq, box = seq & 1;
  if (!((mask >> fiber->lane) & 1)) fail("a warp operation by a lane that its mask leaves out");
  fiber->warp->value[box][fiber->lane] = value;
  fiber->warp->seq[box][fiber->lane] = seq;
  fiber->mask = mask;
  yield(AT_WARP);
  if (!((mask >> source) & 1) || fiber->warp->seq[box][source] != seq) {
    fail("a shuffle that reads a lane which takes no part");
  }
  return fiber->warp->value[box][source];
}

using Thunk = void (*)(void** args);
void register_kernel(const char* name, Thunk thunk, u32 n_arg);

template <auto Kernel> struct Call;
template <class... Args, void (*Kernel)(Args...)> struct Call<Kernel> {
  static const u32 N_ARG = sizeof...(Args);
  template <size_t... I> static void apply(void** args, std::index_sequence<I...>) {
    Kernel(*(Args*)args[I]...);
  }
  static void thunk(void** args) { apply(args, std::index_sequence_for<Args...>{}); }
};

template <class T> inline T load(const void* p) {
  if ((uintptr_t)p % sizeof(T)) fail("a misaligned vector load");
  return *(const T*)p;
}

}  // namespace gpu_sim

#define GPU_KERNEL(name) \
  static const int gpu_registered_##name = \
      (gpu_sim::register_kernel(#name, &gpu_sim::Call<&name>::thunk, \
                                gpu_sim::Call<&name>::N_ARG), 0);

#define threadIdx (gpu_sim::context.fiber->thread)
#define blockIdx (gpu_sim::context.block)
#define blockDim (gpu_sim::context.block_dim)
#define gridDim (gpu_sim::context.grid_dim)

static inline void __syncthreads() { gpu_sim::yield(gpu_sim::AT_BLOCK); }
static inline float __shfl_xor_sync(u32 mask, float v, int lanes) {
  const u32 source = gpu_sim::context.fiber->lane ^ lanes;
  return gpu_sim::bits<float>(gpu_sim::exchange(mask, gpu_sim::bits<u32>(v), source));
}
static inline float __shfl_sync(u32 mask, float v, int lane) {
  return gpu_sim::bits<float>(gpu_sim::exchange(mask, gpu_sim::bits<u32>(v), lane & 31));
}

static inline uint4 load128(const void* p) { return gpu_sim::load<uint4>(p); }
static inline uint2 load64(const void* p) { return gpu_sim::load<uint2>(p); }
static inline u32 load32(const void* p) { return gpu_sim::load<u32>(p); }
static inline u16 load16(const void* p) { return gpu_sim::load<u16>(p); }
static inline float2 shared64(const void* p) { return gpu_sim::load<float2>(p); }
static inline uint4 shared128(const void* p) { return gpu_sim::load<uint4>(p); }
static inline void set_shared128(void* p, uint4 v) {
  if ((uintptr_t)p % 16) gpu_sim::fail("a misaligned vector store");
  *(uint4*)p = v;
}

template <int I> static inline float byte_to_float(u32 word) { return (u8)(word >> 8 * I); }
template <int I> static inline float signed_byte_to_float(u32 word) {
  return (i8)(word >> 8 * I);
}

static inline u32 permute(u32 a, u32 b, u32 select) {
  const u64 bytes = (u64)b << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; i++) {
    const u32 digit = select >> (4 * i) & 15;
    u32 byte = bytes >> (8 * (digit & 7)) & 255;
    if (digit & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}

#include "half_sim.h"

static inline float fma32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float exp2_fast(float x) {
  const float r = exp2f(x);
  return r < 1.17549435e-38f ? 0.f : r;
}
static inline float rsqrt_fast(float x) { return 1.f / sqrtf(x); }
static inline float mul32(float a, float b) {
  volatile float product = a * b;
  return product;
}
static inline int round_to_int(float x) { return (int)nearbyintf(x); }

// d [16, 8] += a [16, 16] . b [16, 8]: lane 4 g + t holds of a rows g and g + 8, columns 2 t and
// 2 t + 8; of b column g, rows 2 t and 2 t + 8; of d rows g and g + 8, columns 2 t and 2 t + 1.
// Products are exact, and their sum is rounded once; a device rounds a little otherwise.
static inline void mma_16_8_16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const u32 lane = gpu_sim::context.fiber->lane, g = lane / 4, t = lane % 4;
  double sums[4] = {d[0], d[1], d[2], d[3]};
  for (u32 k = 0; k < 4; k++) {
    u32 rows[4], columns[2][2];
    for (u32 i = 0; i < 4; i++) rows[i] = gpu_sim::exchange(~0u, a[i], 4 * g + k);
    for (u32 c = 0; c < 2; c++) {
      columns[c][0] = gpu_sim::exchange(~0u, b0, 4 * (2 * t + c) + k);
      columns[c][1] = gpu_sim::exchange(~0u, b1, 4 * (2 * t + c) + k);
    }
    for (u32 v = 0; v < 4; v++) {
      for (u32 half = 0; half < 2; half++) {
        const u32 x = rows[v / 2 + 2 * half], y = columns[v % 2][half];
        sums[v] += (double)h2f((u16)x) * h2f((u16)y);
        sums[v] += (double)h2f((u16)(x >> 16)) * h2f((u16)(y >> 16));
      }
    }
  }
  for (u32 v = 0; v < 4; v++) d[v] = (float)sums[v];
}
