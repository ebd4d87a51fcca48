// Brings input columns into the form that matrix-vector kernels read (strip.h).
//
//   x [n_cols, stride] f32  ->  inputs: columns of halves and sums, each behind its unit
//   grid (n_cols), 256 threads; groups past the end of x become zeros
//
// The scale is the power of two that brings the largest value into 2^14 .. 2^15: no sum of a part
// can leave the range of halves, and an input whose largest value is 2^28 times another still has
// that other as a normal number.
#include "strip.h"

#define STAGE_THREADS 256

// 2^n for n from -126 to 127, infinity for 128.
DEVICE float power_of_two(int n) { return as_float((u32)(127 + n) << 23); }

extern "C" __global__ void __launch_bounds__(STAGE_THREADS)
    stage_f16(const float* __restrict__ x, u8* inputs, u32 n, u32 stride, u32 n_group) {
  __shared__ float warp_far[STAGE_THREADS / WARP];
  const u32 t = threadIdx.x;
  x += (u64)blockIdx.x * stride;
  u8* column = inputs + (u64)blockIdx.x * input_bytes(n_group);
  float far = 0.f;
  for (u32 i = t; i < n; i += STAGE_THREADS) far = max_float(far, x[i] < 0.f ? -x[i] : x[i]);
  far = warp_max(far);
  if (t % WARP == 0) warp_far[t / WARP] = far;
  __syncthreads();
  for (int w = 0; w < STAGE_THREADS / WARP; w++) far = max_float(far, warp_far[w]);
  int exponent = (int)(as_bits(far) >> 23) - 127;
  if (exponent < -100) exponent = -100;  // zeros, and what may as well be
  const float scale = power_of_two(14 - exponent);
  const int unit = 24 - 14 + exponent;
  if (t == 0) *(float*)column = power_of_two(unit > 127 ? 128 : unit);  // 2^128 is infinity
  // A thread makes 8 values, and every fourth the sums of its part.
  for (u32 i = t; i < n_group * GROUP_PARTS * 4; i += STAGE_THREADS) {
    const u32 part_idx = i / 4, j = i % 4;
    u8* group = column + INPUT_HEADER_BYTES + part_idx / GROUP_PARTS * INPUT_GROUP_BYTES;
    const u32 p = part_idx % GROUP_PARTS;
    u32 words[4];
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const u32 at = i * 8 + 2 * k;
      const u32 pair = pack_halves(at < n ? x[at] * scale : 0.f,
                                   at + 1 < n ? x[at + 1] * scale : 0.f);
      words[k] = pair;
      sum += half_low(pair) + half_high(pair);
    }
    *(uint4*)(group + j * PLANE_BYTES + p * 16) = {words[0], words[1], words[2], words[3]};
    // Neighbours have the other eight of the sixteen; all lanes of a warp come here together,
    // because the trip count is a multiple of 32.
    sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    if (j % 2 == 0) ((float*)(group + 4 * PLANE_BYTES + p * 8))[j / 2] = sum * power_of_two(-24);
  }
}
GPU_KERNEL(stage_f16)
