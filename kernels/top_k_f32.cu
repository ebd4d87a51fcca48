// The `k` largest of a row of logits, so that a few bytes cross instead of a vocabulary.
//
//   x [n_rows, stride] f32  ->  out [n_rows][k](value bits, index), from the largest; of equals the
//                               first index first; NaN is never among them, and where there are
//                               fewer than k numbers the rest are (-infinity, ~0)
//   grid (n_rows), 256 threads; k at most 128
//
// The row is read once: 1,024 runs of it leave the best of each in shared memory. Then, k times, the
// best run gives its best away and is read again for the next one, which is cheap because a run is
// short. Bound by memory, a row of 152,064 is 608 KB, and by k rounds of two barriers. Whoever wants
// the largest alone asks for two: only the second tells whether there are equals.
#include "gpu.h"

#define TOP_K_THREADS 256
#define N_RUN 1024

struct Best {
  float value;
  u32 idx;
};

// Whether a comes before b.
DEVICE bool is_before(Best a, Best b) {
  return a.value > b.value || (a.value == b.value && a.idx < b.idx);
}
DEVICE Best better(Best a, Best b) { return is_before(b, a) ? b : a; }

DEVICE Best warp_best(Best best) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) {
    const float value = __shfl_xor_sync(FULL_WARP, best.value, step);
    const u32 idx = as_bits(__shfl_xor_sync(FULL_WARP, as_float(best.idx), step));
    best = better(best, {value, idx});
  }
  return best;
}

// The best over the block, in every thread.
DEVICE Best block_best(Best best, Best* bests) {
  best = warp_best(best);
  if (threadIdx.x % WARP == 0) bests[threadIdx.x / WARP] = best;
  __syncthreads();
  best = bests[0];
  for (int w = 1; w < TOP_K_THREADS / WARP; w++) best = better(best, bests[w]);
  return best;
}

extern "C" __global__ void __launch_bounds__(TOP_K_THREADS)
    top_k_f32(const float* __restrict__ x, uint2* out, u32 width, u32 stride, u32 k) {
  __shared__ Best runs[N_RUN];
  __shared__ Best bests[2][TOP_K_THREADS / WARP];
  x += (u64)blockIdx.x * stride;
  out += (u64)blockIdx.x * k;
  const Best none = {as_float(0xff800000u), ~0u};
  // Run r is r, r + 1024, ...: neighbours read neighbours.
  for (u32 run = threadIdx.x; run < N_RUN; run += TOP_K_THREADS) {
    Best best = none;
    for (u32 i = run; i < width; i += N_RUN) best = better(best, {x[i], i});
    runs[run] = best;
  }
  for (u32 n = 0; n < k; n++) {
    __syncthreads();
    Best best = none;
    for (u32 run = threadIdx.x; run < N_RUN; run += TOP_K_THREADS) best = better(best, runs[run]);
    best = block_best(best, bests[0]);
    if (threadIdx.x == 0) out[n] = {as_bits(best.value), best.idx};
    if (best.idx == ~0u) continue;
    // The next of its run: the best that comes behind it.
    const u32 run = best.idx % N_RUN;
    Best next = none;
    for (u32 i = run + threadIdx.x * N_RUN; i < width; i += TOP_K_THREADS * N_RUN) {
      const Best other = {x[i], i};
      if (is_before(best, other)) next = better(next, other);
    }
    next = block_best(next, bests[1]);
    if (threadIdx.x == 0) runs[run] = next;
  }
}
GPU_KERNEL(top_k_f32)
