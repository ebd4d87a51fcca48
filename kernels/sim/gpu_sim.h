// The simulator's half of gpu.h: lets a kernel file compile as plain C++ and run on the processor.
//
// Thread blocks run one after another, their CUDA threads are fibers on one thread of the system.
// So a `__shared__` array is a static, and the simulator has no data races of its own; those of a
// kernel show as results that depend on the order in which fibers run. All of them stand in one
// section, which is made NaN before a block begins: what nobody wrote shows as well.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __shared__ static __attribute__((section("gpu_shared")))
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

// What lanes of a warp lay down for each other at one of its operations; `seq` says at which.
struct Mail {
  static const u32 N_WORD = 12;
  u32 words[32][N_WORD];
  u32 seq[32];
};

// Its lanes by their numbers, whatever the order in which they run. There are two mails, so that a
// lane may lay down its next words while slower lanes read the last ones.
struct Warp {
  State state[32];
  u32 mask[32], seq[32];  // of the operation at which a lane waits
  Mail mails[2];
};

struct Fiber {
  void* stack;  // where it goes on; null before it has begun
  Warp* warp;
  Index thread;
  u32 lane;
};

struct Context {
  Fiber* fiber;
  Index block, block_dim, grid_dim;
  const char* kernel;
};
extern Context context;

// Lets other threads run, until what `state` waits for has happened.
void yield(State state);
// Ends the program with the kernel, block and thread that broke a rule of the device.
[[noreturn]] void fail(const char* what);

template <class T, class U> inline T bits(U from) {
  static_assert(sizeof(T) == sizeof(U), "same size");
  T to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// A warp operation of a lane: its words, and those of the others when all of the mask are there.
class Meeting {
 public:
  template <u32 N> Meeting(u32 mask, const u32 (&words)[N]) : mask_(mask) {
    static_assert(N <= Mail::N_WORD, "a mail has room");
    const u32 lane = context.fiber->lane;
    Warp& warp = *context.fiber->warp;
    if (!((mask >> lane) & 1)) fail("a warp operation by a lane that its mask leaves out");
    seq_ = ++warp.seq[lane];
    mail_ = &warp.mails[seq_ & 1];
    for (u32 i = 0; i < N; i++) mail_->words[lane][i] = words[i];
    mail_->seq[lane] = seq_;
    warp.mask[lane] = mask;
    yield(AT_WARP);
  }

  const u32* words(u32 source) const {
    if (!((mask_ >> source) & 1) || mail_->seq[source] != seq_) {
      fail("a shuffle that reads a lane which takes no part");
    }
    return mail_->words[source];
  }

 private:
  u32 mask_, seq_;
  Mail* mail_;
};

inline u32 exchange(u32 mask, u32 value, u32 source) {
  const u32 words[1] = {value};
  return Meeting(mask, words).words(source)[0];
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
static inline float rcp_fast(float x) { return 1.f / x; }
static inline float mul32(float a, float b) {
  volatile float product = a * b;
  return product;
}
static inline int round_to_int(float x) { return (int)nearbyintf(x); }

typedef float Floats4 __attribute__((vector_size(16)));
typedef double Doubles4 __attribute__((vector_size(32)));

// d [16, 8] += a [16, 16] . b [16, 8]: lane 4 g + t holds of a rows g and g + 8, columns 2 t and
// 2 t + 8; of b column g, rows 2 t and 2 t + 8; of d rows g and g + 8, columns 2 t and 2 t + 1.
// Products are exact, also in float, and their sum is rounded once; a device rounds a little
// otherwise.
static inline void mma_16_8_16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const u32 lane = gpu_sim::context.fiber->lane, g = lane / 4, t = lane % 4;
  // Rows g and g + 8 of a, column g of b.
  const u32 pairs[6] = {a[0], a[2], a[1], a[3], b0, b1};
  u32 words[12];
  for (u32 i = 0; i < 12; i++) {
    words[i] = gpu_sim::bits<u32>(h2f((u16)(pairs[i / 2] >> 16 * (i % 2))));
  }
  const gpu_sim::Meeting all(~0u, words);
  Doubles4 sums[4] = {};
  for (u32 k = 0; k < 4; k++) {
    Floats4 rows[2], columns[2];
    memcpy(rows, all.words(4 * g + k), sizeof rows);
    for (u32 c = 0; c < 2; c++) {
      memcpy(&columns[c], all.words(4 * (2 * t + c) + k) + 8, sizeof columns[c]);
    }
    for (u32 v = 0; v < 4; v++) {
      sums[v] += __builtin_convertvector(rows[v / 2] * columns[v % 2], Doubles4);
    }
  }
  for (u32 v = 0; v < 4; v++) {
    d[v] = (float)(d[v] + ((sums[v][0] + sums[v][1]) + (sums[v][2] + sums[v][3])));
  }
}
