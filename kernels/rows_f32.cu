// What is done to rows value by value: activations, products, sums, rotations, choice of rows.
//
//   x [n_rows, stride] f32, changed in place
//   grid (ceil(width / 256), n_rows), 256 threads
//
// Bound by memory and by launches; each is a few bytes of a model's step.
#include "gpu.h"

#define ROWS_THREADS 256
#define COLUMN_OR_RETURN(width)                             \
  const u32 i = blockIdx.x * ROWS_THREADS + threadIdx.x;    \
  if (i >= (width)) return;                                 \
  const u64 at = (u64)blockIdx.y * stride + i;

enum Activation { SILU = 0, GELU = 1, TANH = 2 };

DEVICE float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }

// 1 - 2 / (exp(2 x) + 1): at both ends exact, where the exponential is 0 or infinite.
DEVICE float tanh_fast(float x) { return 1.f - 2.f / (exp_fast(2.f * x) + 1.f); }

DEVICE float activate(float x, u32 activation) {
  if (activation == SILU) return x / (1.f + exp_fast(-x));
  if (activation == TANH) return tanh_fast(x);
  return 0.5f * x * (1.f + tanh_fast(0.79788456f * fma32(0.044715f * x * x, x, x)));
}

// gate = activation(gate) * up
extern "C" __global__ void __launch_bounds__(ROWS_THREADS)
    glu_f32(float* gate, const float* __restrict__ up, u32 width, u32 stride, u32 activation) {
  COLUMN_OR_RETURN(width)
  gate[at] = activate(gate[at], activation) * up[at];
}
GPU_KERNEL(glu_f32)

// x = activation(x)
extern "C" __global__ void __launch_bounds__(ROWS_THREADS)
    act_f32(float* x, u32 width, u32 stride, u32 activation) {
  COLUMN_OR_RETURN(width)
  x[at] = activate(x[at], activation);
}
GPU_KERNEL(act_f32)

// x = x * factor + y, y [n_rows, stride] or null
extern "C" __global__ void __launch_bounds__(ROWS_THREADS)
    add_f32(float* x, const float* __restrict__ y, u32 width, u32 stride, float factor) {
  COLUMN_OR_RETURN(width)
  x[at] = y ? fma32(x[at], factor, y[at]) : x[at] * factor;
}
GPU_KERNEL(add_f32)

// out[r] = x[index[r]], both [rows, stride]
extern "C" __global__ void __launch_bounds__(ROWS_THREADS)
    select_f32(const float* __restrict__ x, float* out, const u32* __restrict__ index, u32 width,
               u32 stride) {
  COLUMN_OR_RETURN(width)
  out[at] = x[(u64)index[blockIdx.y] * stride + i];
}
GPU_KERNEL(select_f32)

// Turns pair `i % n` of head `i / n` by angles[row][i % n] = (cos, sin): neighbours of a head, or
// values n apart.
extern "C" __global__ void __launch_bounds__(ROWS_THREADS)
    rope_f32(float* x, const float2* __restrict__ angles, u32 n_head, u32 head_dim, u32 n_pair,
             u32 stride, u32 halves) {
  COLUMN_OR_RETURN(n_head * n_pair)
  const u32 pair_idx = i % n_pair;
  float* head = x + (u64)blockIdx.y * stride + i / n_pair * head_dim;
  float* a = head + (halves ? pair_idx : 2 * pair_idx);
  float* b = a + (halves ? n_pair : 1);
  const float2 angle = angles[(u64)blockIdx.y * n_pair + pair_idx];
  const float x0 = *a, x1 = *b;
  *a = x0 * angle.x - x1 * angle.y;
  *b = x0 * angle.y + x1 * angle.x;
  (void)at;
}
GPU_KERNEL(rope_f32)
