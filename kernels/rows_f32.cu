// What is done to rows value by value: activations, products, sums, choice of rows.
//
//   x [n_rows, stride] f32, changed in place
//   grid (ceil(width / 256), n_rows), 256 threads
//
// Bound by memory and by launches; each is a few bytes of a model's step.
#include "activate.h"

#define ROWS_THREADS 256
#define COLUMN_OR_RETURN(width)                             \
  const u32 i = blockIdx.x * ROWS_THREADS + threadIdx.x;    \
  if (i >= (width)) return;                                 \
  const u64 at = (u64)blockIdx.y * stride + i;

// gate = activation(gate) * up, up [n_rows, stride] or null
extern "C" __global__ void __launch_bounds__(ROWS_THREADS)
    glu_f32(float* gate, const float* __restrict__ up, u32 width, u32 stride, u32 activation) {
  COLUMN_OR_RETURN(width)
  gate[at] = glu(gate, up, at, activation);
}
GPU_KERNEL(glu_f32)

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
