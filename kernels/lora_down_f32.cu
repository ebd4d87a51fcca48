// hidden = scale * A x: the narrow side of a LoRA adapter's pair, for each row of its own adapter.
//
//   x [n, stride] f32, pairs and uses as lora.h has them  ->  hidden [n, hidden_stride] f32
//   grid (ceil(rank / 4), n) for the largest rank of the pairs, 128 threads: a warp has a row of A
//
// Two instructions of three load, so a step of a few tokens is bound by memory: A is read once for each
// token, from the cache where tokens follow each other. A rank of 16 on every matrix of TinyLlama is
// 50 MB for a token in both kernels, 8 % of what its weights take. A row is added up by itself, a lane's
// terms in order and the lanes as a tree, so its bits know no company. Rows are not gathered by adapter
// and multiplied as tiles: which rows those are follows from the batch, and so would recorded launches.
#include "lora.h"

#define DOWN_THREADS 128

extern "C" __global__ void __launch_bounds__(DOWN_THREADS)
    lora_down_f32(const float* __restrict__ x, const Pair* __restrict__ pairs,
                  const Use* __restrict__ uses, float* __restrict__ hidden, u32 n_in, u32 stride,
                  u32 hidden_stride) {
  const u32 lane = threadIdx.x % WARP;
  const u32 row = blockIdx.x * (DOWN_THREADS / WARP) + threadIdx.x / WARP;
  const Use use = uses[blockIdx.y];
  const Pair pair = pair_of(pairs, use);
  if (row >= pair.rank) return;
  const float* a = (const float*)pair.a + (u64)row * n_in;
  x += (u64)blockIdx.y * stride;
  float sum = 0.f;
  u32 i = lane;
  for (; i + 3 * WARP < n_in; i += 4 * WARP) {
    float weights[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) weights[k] = as_float(load32(a + i + k * WARP));
#pragma unroll
    for (u32 k = 0; k < 4; k++) sum = fma32(weights[k], x[i + k * WARP], sum);
  }
  for (; i < n_in; i += WARP) sum = fma32(as_float(load32(a + i)), x[i], sum);
  sum = warp_sum(sum);
  if (lane == 0) hidden[(u64)blockIdx.y * hidden_stride + row] = use.scale * pair.scale * sum;
}
GPU_KERNEL(lora_down_f32)
