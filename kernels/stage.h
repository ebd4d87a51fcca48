// A row brought into the form that products read (strip.h), by a thread block: halves and their
// sums, behind the unit; groups past the end of the row become zeros.
//
// The scale is the power of two that brings the largest value into 2^14 .. 2^15: no sum of a part
// can leave the range of halves, and an input whose largest value is 2^28 times another still has
// that other as a normal number.
//
// The row may be there already, or be made on the way: `make(i)` is value i, asked for once, and
// leaves it in x[i], since other threads read it there when the largest is known.
#pragma once
#include "strip.h"

// 2^n for n from -126 to 127, infinity for 128.
DEVICE float power_of_two(int n) { return as_float((u32)(127 + n) << 23); }

// The largest value of the row, without its sign, in every thread.
template <u32 THREADS, class Make>
DEVICE float farthest(u32 n, float (&warp_far)[THREADS / WARP], const Make& make) {
  float far = 0.f;
  for (u32 i = threadIdx.x; i < n; i += THREADS) {
    const float v = make(i);
    far = max_float(far, v < 0.f ? -v : v);
  }
  far = warp_max(far);
  if (threadIdx.x % WARP == 0) warp_far[threadIdx.x / WARP] = far;
  __syncthreads();
  for (u32 w = 0; w < THREADS / WARP; w++) far = max_float(far, warp_far[w]);
  return far;
}

// Column blockIdx.x of `inputs`, of a row of n values. `warp_far` is shared memory.
template <u32 THREADS, class Make>
DEVICE void stage_row(const float* x, u8* inputs, u32 n, u32 n_group,
                      float (&warp_far)[THREADS / WARP], const Make& make) {
  u8* column = inputs + (u64)blockIdx.x * input_bytes(n_group);
  int exponent = (int)(as_bits(farthest<THREADS>(n, warp_far, make)) >> 23) - 127;
  if (exponent < -100) exponent = -100;  // zeros, and what may as well be
  const float scale = power_of_two(14 - exponent);
  const int unit = 24 - 14 + exponent;
  // 2^128 is infinity.
  if (threadIdx.x == 0) *(float4*)column = {power_of_two(unit > 127 ? 128 : unit), 0.f, 0.f, 0.f};
  // A thread makes 8 values, and every fourth the sums of its part.
  for (u32 i = threadIdx.x; i < n_group * GROUP_PARTS * 4; i += THREADS) {
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
