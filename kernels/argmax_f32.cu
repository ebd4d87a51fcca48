// The largest of a row of logits, so that four bytes cross instead of a vocabulary.
//
//   x [n_rows, stride] f32  ->  out [n_rows](value bits, index); of equals the first
//   grid (n_rows), 256 threads; NaN is never the largest; a row of nothing else answers index 0
#include "gpu.h"

#define ARGMAX_THREADS 256

struct Best {
  float value;
  u32 idx;
};

DEVICE Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.idx < a.idx) ? b : a;
}

extern "C" __global__ void __launch_bounds__(ARGMAX_THREADS)
    argmax_f32(const float* __restrict__ x, uint2* out, u32 width, u32 stride) {
  __shared__ Best bests[ARGMAX_THREADS / WARP];
  x += (u64)blockIdx.x * stride;
  const float lowest = as_float(0xff800000u);
  Best best = {lowest, width};
  for (u32 i = threadIdx.x; i < width; i += ARGMAX_THREADS) best = better(best, {x[i], i});
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) {
    const float value = __shfl_xor_sync(FULL_WARP, best.value, step);
    const u32 idx = as_bits(__shfl_xor_sync(FULL_WARP, as_float(best.idx), step));
    best = better(best, {value, idx});
  }
  if (threadIdx.x % WARP == 0) bests[threadIdx.x / WARP] = best;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < ARGMAX_THREADS / WARP; w++) best = better(best, bests[w]);
  out[blockIdx.x] = {as_bits(best.value), best.idx < width ? best.idx : 0};
}
GPU_KERNEL(argmax_f32)
