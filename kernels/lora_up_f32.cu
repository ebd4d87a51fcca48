// y += B hidden: the wide side of a LoRA adapter's pair, for each row of its own adapter.
//
//   hidden [n, hidden_stride] f32 as lora_down_f32 leaves it  ->  y [n, stride] f32, changed in place
//   grid (ceil(n_out / 128), n), 128 threads: a thread has a value of y
//
// Bound as lora_down_f32 is. Each thread adds its terms up in order, so no lane waits for another; what
// all of them read of `hidden` is one address at a time.
#include "lora.h"

#define UP_THREADS 128

extern "C" __global__ void __launch_bounds__(UP_THREADS)
    lora_up_f32(const float* __restrict__ hidden, const Pair* __restrict__ pairs,
                const Use* __restrict__ uses, float* __restrict__ y, u32 n_out, u32 stride,
                u32 hidden_stride) {
  const u32 i = blockIdx.x * UP_THREADS + threadIdx.x;
  const Pair pair = pair_of(pairs, uses[blockIdx.y]);
  if (i >= n_out || !pair.rank) return;
  const float* b = (const float*)pair.b + i;
  hidden += (u64)blockIdx.y * hidden_stride;
  float sum = 0.f;
  u32 r = 0;
  for (; r + 3 < pair.rank; r += 4) {
    float weights[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) weights[k] = as_float(load32(b + (u64)(r + k) * n_out));
#pragma unroll
    for (u32 k = 0; k < 4; k++) sum = fma32(weights[k], hidden[r + k], sum);
  }
  for (; r < pair.rank; r++) sum = fma32(as_float(load32(b + (u64)r * n_out)), hidden[r], sum);
  y[(u64)blockIdx.y * stride + i] += sum;
}
GPU_KERNEL(lora_up_f32)
