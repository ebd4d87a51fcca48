// Attention over pages of half keys and values, and what fills the pages.
//
//   cache    [n_page][n_kv_head][32 positions][head_dim] f16, one for keys, one for values, a layer
//   pages    of the token's sequence, in the order of its positions
//
// Each token and query head has `n_split` thread blocks, which share its positions; each of their
// 4 warps walks every fourth with a softmax of its own that is rescaled when a larger score comes
// (Milakov and Gimelshein, 2018). The partial results of all meet in `attn_join_f32`, in the order
// of positions' shares, so bits do not depend on the batch. How many splits there are follows from
// the token's own position alone.
//
// Bound by memory: a step reads each key and value of the sequence once for each query head of its
// group, from the second on out of the cache.
#include "gpu.h"

#define PAGE_LEN 32
#define ATTN_THREADS 128
#define ATTN_WARPS (ATTN_THREADS / WARP)
#define HEAD_DIM_MAX 256
#define LANE_PAIRS (HEAD_DIM_MAX / 2 / WARP)
#define NO_SCORE -1e30f

// Of each token of the batch.
struct Token {
  u32 pages_start;  // where its sequence's pages begin
  u32 start, end;   // positions that it sees
  u32 slot;         // where its own key and value go: page * 32 + position in the page
  u32 n_split;
};

// Writes the key and value of each token into its slot.
//   grid (ceil(width / 256), n_tokens), 256 threads; k, v [n_tokens, stride]
extern "C" __global__ void __launch_bounds__(256)
    kv_append_f16(const float* __restrict__ k, const float* __restrict__ v, u16* keys, u16* values,
                  const Token* __restrict__ tokens, u32 n_kv_head, u32 head_dim, u32 stride) {
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n_kv_head * head_dim) return;
  const u32 slot = tokens[blockIdx.y].slot, head = i / head_dim;
  const u64 row = ((u64)(slot / PAGE_LEN) * n_kv_head + head) * PAGE_LEN + slot % PAGE_LEN;
  const u64 to = row * head_dim + i % head_dim, from = (u64)blockIdx.y * stride + i;
  keys[to] = f2h(k[from]);
  values[to] = f2h(v[from]);
}
GPU_KERNEL(kv_append_f16)

// A share of one token's and head's positions: (m, l, head_dim values) into `partials`
// [n_tokens][n_head][n_split_max][2 + head_dim].
//   grid (n_head, n_tokens, n_split_max), 128 threads; head_dim even and at most 256
extern "C" __global__ void __launch_bounds__(ATTN_THREADS)
    attn_f16(const float* __restrict__ q, const u16* __restrict__ keys,
             const u16* __restrict__ values, const Token* __restrict__ tokens,
             const u32* __restrict__ pages, float* partials, u32 n_head, u32 n_kv_head,
             u32 head_dim, u32 stride, float scale) {
  __shared__ float maxima[ATTN_WARPS], sums[ATTN_WARPS];
  __shared__ float outs[ATTN_WARPS][HEAD_DIM_MAX];
  const Token token = tokens[blockIdx.y];
  const u32 split = blockIdx.z;
  if (split >= token.n_split) return;
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head = blockIdx.x;
  const u32 kv_head = head / (n_head / n_kv_head), n_pair = head_dim / 2;
  float query[2 * LANE_PAIRS], acc[2 * LANE_PAIRS];
#pragma unroll
  for (int i = 0; i < LANE_PAIRS; i++) {
    const u32 pair = lane + i * WARP;
    const float* from = q + (u64)blockIdx.y * stride + head * head_dim + 2 * pair;
    // Scores in base 2, which is the exponential that the device has.
    query[2 * i] = pair < n_pair ? from[0] * scale * 1.44269504f : 0.f;
    query[2 * i + 1] = pair < n_pair ? from[1] * scale * 1.44269504f : 0.f;
    acc[2 * i] = acc[2 * i + 1] = 0.f;
  }
  float m = NO_SCORE, l = 0.f;
  // Whole pages to each split, so that every warp works on one page at a time.
  const u32 first_page = token.start / PAGE_LEN, n_page = (token.end + PAGE_LEN - 1) / PAGE_LEN;
  const u32 share = (n_page - first_page + token.n_split - 1) / token.n_split;
  u32 pos = (first_page + split * share) * PAGE_LEN, end = pos + share * PAGE_LEN;
  if (pos < token.start) pos = token.start;
  if (end > token.end) end = token.end;
  for (pos += warp; pos < end; pos += ATTN_WARPS) {
    const u32 page = load32(pages + token.pages_start + pos / PAGE_LEN);
    const u64 row = ((u64)page * n_kv_head + kv_head) * PAGE_LEN + pos % PAGE_LEN;
    const u32* key = (const u32*)(keys + row * head_dim);
    const u32* value = (const u32*)(values + row * head_dim);
    float score = 0.f;
    u32 v[LANE_PAIRS];
#pragma unroll
    for (int i = 0; i < LANE_PAIRS; i++) {
      const u32 pair = lane + i * WARP;
      if ((u32)i * WARP >= n_pair) break;
      const u32 k = pair < n_pair ? load32(key + pair) : 0;
      v[i] = pair < n_pair ? load32(value + pair) : 0;
      score = fma32(query[2 * i], half_low(k), score);
      score = fma32(query[2 * i + 1], half_high(k), score);
    }
    score = warp_sum(score);
    const float higher = max_float(m, score);
    const float fade = exp2_fast(m - higher), weight = exp2_fast(score - higher);
    m = higher;
    l = fma32(l, fade, weight);
#pragma unroll
    for (int i = 0; i < LANE_PAIRS; i++) {
      if ((u32)i * WARP >= n_pair) break;
      acc[2 * i] = fma32(acc[2 * i], fade, weight * half_low(v[i]));
      acc[2 * i + 1] = fma32(acc[2 * i + 1], fade, weight * half_high(v[i]));
    }
  }
  if (lane == 0) {
    maxima[warp] = m;
    sums[warp] = l;
  }
#pragma unroll
  for (int i = 0; i < LANE_PAIRS; i++) {
    outs[warp][2 * (lane + i * WARP)] = acc[2 * i];
    outs[warp][2 * (lane + i * WARP) + 1] = acc[2 * i + 1];
  }
  __syncthreads();
  float top = maxima[0], total = 0.f;
#pragma unroll
  for (int w = 1; w < ATTN_WARPS; w++) top = max_float(top, maxima[w]);
  const u64 place = ((u64)blockIdx.y * n_head + head) * gridDim.z + split;
  float* partial = partials + place * (2 + head_dim);
  for (u32 i = threadIdx.x; i < head_dim; i += ATTN_THREADS) {
    float out = 0.f;
#pragma unroll
    for (int w = 0; w < ATTN_WARPS; w++) {
      out = fma32(outs[w][i], exp2_fast(maxima[w] - top), out);
    }
    partial[2 + i] = out;
  }
#pragma unroll
  for (int w = 0; w < ATTN_WARPS; w++) {
    total = fma32(sums[w], exp2_fast(maxima[w] - top), total);
  }
  if (threadIdx.x == 0) {
    partial[0] = top;
    partial[1] = total;
  }
}
GPU_KERNEL(attn_f16)

// Joins the shares of each token and head: out [n_tokens, stride].
//   grid (n_head, n_tokens), 128 threads
extern "C" __global__ void __launch_bounds__(ATTN_THREADS)
    attn_join_f32(const float* __restrict__ partials, const Token* __restrict__ tokens, float* out,
                  u32 head_dim, u32 stride, u32 n_split_max) {
  const u32 n_split = tokens[blockIdx.y].n_split, n_head = gridDim.x;
  const u64 place = ((u64)blockIdx.y * n_head + blockIdx.x) * n_split_max;
  const float* first = partials + place * (2 + head_dim);
  float top = NO_SCORE, total = 0.f;
  for (u32 s = 0; s < n_split; s++) top = max_float(top, first[s * (2 + head_dim)]);
  for (u32 s = 0; s < n_split; s++) {
    const float* partial = first + s * (2 + head_dim);
    total = fma32(partial[1], exp2_fast(partial[0] - top), total);
  }
  for (u32 i = threadIdx.x; i < head_dim; i += ATTN_THREADS) {
    float sum = 0.f;
    for (u32 s = 0; s < n_split; s++) {
      const float* partial = first + s * (2 + head_dim);
      sum = fma32(partial[2 + i], exp2_fast(partial[0] - top), sum);
    }
    out[(u64)blockIdx.y * stride + blockIdx.x * head_dim + i] = sum / total;
  }
}
GPU_KERNEL(attn_join_f32)
