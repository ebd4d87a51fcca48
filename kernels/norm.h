// A run of values brought to unit size by a thread block.
//
//   rms      x / sqrt(mean(x^2) + eps)
//   layer    (x - mean(x)) / sqrt(var(x) + eps)
//
// Sums are formed in the same order for any batch, and each operation is rounded by itself, so a
// value has the same bits in whatever kernel it is made.
#pragma once
#include "gpu.h"

#define NORM_THREADS 256

// The sum over the thread block, in every thread.
DEVICE float block_sum(float v, float* warp_sums) {
  v = warp_sum(v);
  __syncthreads();  // nobody still reads what the last sum left
  if (threadIdx.x % WARP == 0) warp_sums[threadIdx.x / WARP] = v;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < NORM_THREADS / WARP; w++) sum += warp_sums[w];
  return sum;
}

// x, weight [width], bias [width] or null
template <bool LAYER> struct NormedRun {
  const float *x, *weight, *bias;
  float mean, scale;

  // By the whole block; `warp_sums` is shared memory.
  METHOD NormedRun(const float* x, const float* weight, const float* bias, u32 width, float eps,
                   float (&warp_sums)[NORM_THREADS / WARP])
      : x(x), weight(weight), bias(bias), mean(0.f) {
    if (LAYER) {
      for (u32 i = threadIdx.x; i < width; i += NORM_THREADS) mean += x[i];
      mean = block_sum(mean, warp_sums) / (float)width;
    }
    float squares = 0.f;
    for (u32 i = threadIdx.x; i < width; i += NORM_THREADS) {
      squares = fma32(x[i] - mean, x[i] - mean, squares);
    }
    scale = rsqrt_fast(block_sum(squares, warp_sums) / (float)width + eps);
  }

  METHOD float operator()(u32 i) const {
    const float unit = mul32(x[i] - mean, scale);
    return bias ? fma32(unit, weight[i], bias[i]) : mul32(unit, weight[i]);
  }
};
