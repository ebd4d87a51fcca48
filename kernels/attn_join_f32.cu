// Joins what blocks with a span each have seen of a row, in the order of spans (attn.h).
//
//   partials [n_tokens][n_head][n_span_max](m, l, head_dim sums)  ->  out [n_tokens, stride]
//   grid (n_head, n_tokens), 128 threads
#include "attn.h"

extern "C" __global__ void __launch_bounds__(ATTN_THREADS)
    attn_join_f32(const float* __restrict__ partials, const Token* __restrict__ tokens, float* out,
                  u32 head_dim, u32 stride, u32 n_span_max, u32 n_rotated, float rotation) {
  __shared__ float row[256];
  const u32 n_span = tokens[blockIdx.y].span_end - tokens[blockIdx.y].first_span;
  const u64 place = ((u64)blockIdx.y * gridDim.x + blockIdx.x) * n_span_max;
  for (u32 i = threadIdx.x; i < head_dim; i += ATTN_THREADS) {
    const float* partial = partials + place * (2 + head_dim);
    Seen total = {NO_SCORE, 0.f};
    float sum = 0.f;
    for (u32 s = 0; s < n_span; s++, partial += 2 + head_dim) {
      const Join join(total, {partial[0], partial[1]});
      sum = join.sum(sum, partial[2 + i]);
    }
    row[i] = sum / total.l;
  }
  __syncthreads();
  if (n_rotated > 1) rotate(row, 1, 256, head_dim, n_rotated, rotation);
  for (u32 i = threadIdx.x; i < head_dim; i += ATTN_THREADS) {
    out[(u64)blockIdx.y * stride + blockIdx.x * head_dim + i] = row[i];
  }
}
GPU_KERNEL(attn_join_f32)
