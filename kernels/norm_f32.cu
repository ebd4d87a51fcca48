// out = norm(x) * weight + bias, for each run of `width` values (norm.h).
//
//   x, out [n_rows, stride] f32; out may be x
//   grid (runs in a row, n_rows), 256 threads
//   weight [n_weight]: one run for all, or as many as a row has; bias [width] or null
//
// Bound by launches: a row of 2048 is 8 KiB.
#include "norm.h"

template <bool LAYER>
DEVICE void norm(const float* x, float* out, const float* weight, const float* bias, u32 width,
                 u32 stride, u32 n_weight, float eps, float (&warp_sums)[NORM_THREADS / WARP]) {
  const u32 start = blockIdx.x * width;
  const u64 at = (u64)blockIdx.y * stride + start;
  const NormedRun<LAYER> run(x + at, weight + start % n_weight, bias, width, eps, warp_sums);
  for (u32 i = threadIdx.x; i < width; i += NORM_THREADS) out[at + i] = run(i);
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
