// out = norm(x) * weight + bias, for each run of `width` values.
//
//   rms      x / sqrt(mean(x^2) + eps)
//   layer    (x - mean(x)) / sqrt(var(x) + eps)
//
//   x, out [n_rows, stride] f32; out may be x
//   grid (runs in a row, n_rows), 128 threads
//   weight [n_weight]: one run for all, or as many as a row has; bias [width] or null
//
// Bound by launches: a row of 2048 is 8 KiB. Sums are formed in the same order for any batch.
#include "gpu.h"

#define NORM_THREADS 128

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

template <bool LAYER>
DEVICE void norm(const float* x, float* out, const float* weight, const float* bias, u32 width,
                 u32 stride, u32 n_weight, float eps, float* warp_sums) {
  const u32 t = threadIdx.x, start = blockIdx.x * width;
  x += (u64)blockIdx.y * stride + start;
  out += (u64)blockIdx.y * stride + start;
  weight += start % n_weight;
  float mean = 0.f;
  if (LAYER) {
    for (u32 i = t; i < width; i += NORM_THREADS) mean += x[i];
    mean = block_sum(mean, warp_sums) / (float)width;
  }
  float squares = 0.f;
  for (u32 i = t; i < width; i += NORM_THREADS) squares = fma32(x[i] - mean, x[i] - mean, squares);
  squares = block_sum(squares, warp_sums);
  const float scale = rsqrt_fast(squares / (float)width + eps);
  for (u32 i = t; i < width; i += NORM_THREADS) {
    const float y = (x[i] - mean) * scale * weight[i];
    out[i] = bias ? y + bias[i] : y;
  }
}

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_f32(const float* x, float* out, const float* __restrict__ weight,
                 const float* __restrict__ bias, u32 width, u32 stride, u32 n_weight, float eps) {
  __shared__ float warp_sums[NORM_THREADS / WARP];
  norm<false>(x, out, weight, bias, width, stride, n_weight, eps, warp_sums);
}
GPU_KERNEL(rms_norm_f32)

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_f32(const float* x, float* out, const float* __restrict__ weight,
                   const float* __restrict__ bias, u32 width, u32 stride, u32 n_weight,
                   float eps) {
  __shared__ float warp_sums[NORM_THREADS / WARP];
  norm<true>(x, out, weight, bias, width, stride, n_weight, eps, warp_sums);
}
GPU_KERNEL(layer_norm_f32)
