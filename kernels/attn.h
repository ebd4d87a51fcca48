// Attention over pages of keys and values: prompts and steps by one kernel.
//
//   cache    [n_page][n_kv_head] planes, one buffer for keys, one for values, a layer; a plane is
//              keys      [head_dim][32 positions]      as the CPU's cache has it
//              values    [32 positions][head_dim]
//            of f16, or of codes and then scales (attn_q8_0.cu, attn_q4_0.cu)
//   row      a token and a query head
//   tile     up to 16 rows, of tokens of one sequence and of heads that share a key head
//   span     8 pages, counted from the sequence's beginning
//
// A thread block has a tile and walks its pages: 32 keys come to shared memory as floats, a lane has
// a position, a warp every fourth row; then the values in their place, and a lane has two of 64
// dimensions. Scores, and the softmax that is rescaled when a larger one comes (Milakov and
// Gimelshein, 2018), are a row's own. A span has sums of its own, and spans are joined one after
// another: in the block that walks them all, or, where there are few rows, by `attn_join_f32`
// after blocks that have a span each. So a row's bits depend neither on its tile nor on how the work
// was shared: pages that it does not see add nothing, exactly.
//
// Bound by instructions for prompts (2 of 3 are multiply-adds), by memory for steps: keys and values
// are read once for all query heads of a key head.
#pragma once
#include "gpu.h"

#define PAGE_LEN 32
#define SPAN_PAGES 8
#define ATTN_THREADS 128
#define ATTN_WARPS (ATTN_THREADS / WARP)
#define BLOCK_LEN 32
#define NO_SCORE -1e30f

// Of each token of the batch.
struct Token {
  u32 pages_start;            // where its sequence's pages begin
  u32 start, end;             // positions that it sees
  u32 slot;                   // where its own key and value go: page * 32 + position in the page
  u32 first_token, token_end;  // its sequence's tokens in the batch
  u32 first_span, span_end;   // spans that any of them sees
};

// Up to `rows` rows of tokens that follow one another in a sequence: row r is token
// r / (query heads of a key head).
struct Tile {
  u32 first_token, first_row, n_row;
  u32 start, end;  // positions that any of them sees
};

// The tile that begins at a token, and at a row of it where a token has more rows than a tile;
// without rows, if another tile has the token.
DEVICE Tile tile_of(const Token* tokens, u32 token_idx, u32 chunk, u32 group, u32 rows) {
  const Token first = tokens[token_idx];
  const u32 n_each = group < rows ? rows / group : 1;
  Tile tile = {token_idx, chunk * rows, 0, first.start, first.end};
  if ((token_idx - first.first_token) % n_each) return tile;
  const u32 rest = first.token_end - token_idx, n_token = rest < n_each ? rest : n_each;
  tile.n_row = n_token * group - tile.first_row;
  if (tile.n_row > rows) tile.n_row = rows;
  for (u32 i = 1; i < n_token; i++) {
    const Token token = tokens[token_idx + i];
    if (token.start < tile.start) tile.start = token.start;
    if (token.end > tile.end) tile.end = token.end;
  }
  return tile;
}

// What was seen of a row so far: the largest score, and sums of exponentials below it.
struct Seen {
  float m, l;
};

// Takes what a span has seen into a row's total; a sum is brought over by its two factors.
struct Join {
  float fade, weight;
  METHOD Join(Seen& total, Seen span) {
    const float higher = max_float(total.m, span.m);
    fade = exp2_fast(total.m - higher);
    weight = exp2_fast(span.m - higher);
    total.m = higher;
    total.l = sum(total.l, span.l);
  }
  METHOD float sum(float total, float span) const {
    return fma32(total, fade, mul32(span, weight));
  }
};

// Hadamard's rotation of whole runs of `n` values of `rows` in shared memory, by the whole block.
DEVICE void rotate(float* rows, u32 n_row, u32 row_stride, u32 head_dim, u32 n, float factor) {
  const u32 n_pair = head_dim / 2;
  for (u32 half = 1; half < n; half *= 2) {
    __syncthreads();
    for (u32 i = threadIdx.x; i < n_row * n_pair; i += ATTN_THREADS) {
      const u32 pair = i % n_pair;
      float* a = rows + i / n_pair * row_stride + pair / half * 2 * half + pair % half;
      const float first = a[0], second = a[half];
      a[0] = first + second;
      a[half] = first - second;
    }
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < n_row * head_dim; i += ATTN_THREADS) {
    rows[i / head_dim * row_stride + i % head_dim] *= factor;
  }
  __syncthreads();
}

struct AttnArgs {
  const float* q;
  const u8 *keys, *values;
  const Token* tokens;
  const u32* pages;
  float* partials;  // [n_tokens][n_head][spans of the grid](m, l, head_dim sums)
  float* out;       // [n_tokens, stride], as q
  u32 n_head, n_kv_head, head_dim, stride;
  float scale;
  u32 n_rotated;  // values that are rotated together
  float rotation;
  u32 first_token;  // of the grid
};

// The rows of one warp. R of them are computed, a power of two; HD is the most that head_dim may be.
template <class Kv, int HD, int R> struct WarpRows {
  static const int PAIRS = HD / 64;
  Seen seen[R];
  float sums[R][2 * PAIRS];

  METHOD void clear() {
#pragma unroll
    for (int i = 0; i < R; i++) {
      seen[i] = {NO_SCORE, 0.f};
#pragma unroll
      for (int j = 0; j < 2 * PAIRS; j++) sums[i][j] = 0.f;
    }
  }

  // Dimensions d to d + 3 of the key of this lane's position.
  METHOD static void take_four(const float* kv, const float* q, u32 d, float (&parts)[R]) {
    const float* key = kv + d * PAGE_LEN + threadIdx.x % WARP;
    const float k0 = key[0], k1 = key[PAGE_LEN], k2 = key[2 * PAGE_LEN], k3 = key[3 * PAGE_LEN];
#pragma unroll
    for (int i = 0; i < R; i++) {
      const uint4 x = shared128(q + i * ATTN_WARPS * HD + d);
      parts[i] = fma32(as_float(x.x), k0, parts[i]);
      parts[i] = fma32(as_float(x.y), k1, parts[i]);
      parts[i] = fma32(as_float(x.z), k2, parts[i]);
      parts[i] = fma32(as_float(x.w), k3, parts[i]);
    }
  }

  // Scores of the page in `kv`, and the weights that they give, for values to come.
  //   q [R rows, 4 apart][HD]; bounds: the first position that a row sees, and one past the last
  METHOD void take_keys(const float* kv, const float* q, const u8* plane, u32 head_dim, u32 pos,
                        const u32 (&bounds)[R][2], float* weights) {
    const u32 lane = threadIdx.x % WARP;
    float scores[R] = {};
    for (u32 block = 0; block < head_dim; block += BLOCK_LEN) {
      float parts[R] = {};
      if (block + BLOCK_LEN <= head_dim) {
#pragma unroll 4
        for (u32 i = 0; i < BLOCK_LEN; i += 4) take_four(kv, q, block + i, parts);
      } else {
        for (u32 d = block; d < head_dim; d += 4) take_four(kv, q, d, parts);
      }
      const float scale = Kv::key_scale(plane, head_dim, block / BLOCK_LEN, lane);
#pragma unroll
      for (int i = 0; i < R; i++) scores[i] = fma32(parts[i], scale, scores[i]);
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
      const bool is_seen = pos + lane >= bounds[i][0] && pos + lane < bounds[i][1];
      const float score = is_seen ? scores[i] : NO_SCORE;
      const float higher = max_float(seen[i].m, warp_max(score));
      const float fade = exp2_fast(seen[i].m - higher);
      const float weight = is_seen ? exp2_fast(score - higher) : 0.f;
      seen[i] = {higher, fma32(seen[i].l, fade, warp_sum(weight))};
#pragma unroll
      for (int j = 0; j < 2 * PAIRS; j++) sums[i][j] *= fade;
      weights[lane * R + i] = weight;
    }
  }

  METHOD void take_values(const float* kv, const float* weights, u32 head_dim) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll 4
    for (u32 pos = 0; pos < PAGE_LEN; pos++) {
      float w[R];
#pragma unroll
      for (int i = 0; i < R; i++) w[i] = weights[pos * R + i];
#pragma unroll
      for (int j = 0; j < PAIRS; j++) {
        // Lanes behind head_dim read what is another's, for sums that nobody reads.
        const float2 value = shared64(kv + pos * head_dim + 2 * (lane + j * WARP));
#pragma unroll
        for (int i = 0; i < R; i++) {
          sums[i][2 * j] = fma32(w[i], value.x, sums[i][2 * j]);
          sums[i][2 * j + 1] = fma32(w[i], value.y, sums[i][2 * j + 1]);
        }
      }
    }
  }
};

// Shared memory of a block.
template <int HD, int ROWS> struct __align__(16) AttnShared {
  float kv[PAGE_LEN * HD];
  float q[ROWS * HD];
  float weights[PAGE_LEN * ROWS];
};

// The block's pages, by warps that compute R rows each.
template <class Kv, int HD, int ROWS, int R>
DEVICE void attend(const AttnArgs& args, AttnShared<HD, ROWS>& shared, const Tile& tile) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head_dim = args.head_dim;
  const u32 group = args.n_head / args.n_kv_head, kv_head = blockIdx.y;
  const bool is_split = gridDim.z > 1;
  u32 bounds[R][2], rows[R];
#pragma unroll
  for (int i = 0; i < R; i++) {
    const u32 row = warp + i * ATTN_WARPS, flat = tile.first_row + row;
    const bool is_there = row < tile.n_row;
    const u32 token_idx = tile.first_token + flat / group;
    // Which row of q, of head_dim values; of a stride that holds other things too.
    rows[i] = is_there ? token_idx * args.n_head + kv_head * group + flat % group : ~0u;
    bounds[i][0] = is_there ? args.tokens[token_idx].start : 0;
    bounds[i][1] = is_there ? args.tokens[token_idx].end : 0;
    float* to = shared.q + row * HD;
    const float* from = args.q + (u64)(rows[i] / args.n_head) * args.stride +
                        rows[i] % args.n_head * head_dim;
    for (u32 d = lane; d < HD; d += WARP) {
      to[d] = is_there && d < head_dim ? from[d] * args.scale * 1.44269504f : 0.f;
    }
  }
  if (Kv::IS_ROTATED) rotate(shared.q, ATTN_WARPS * R, HD, head_dim, args.n_rotated, args.rotation);
  WarpRows<Kv, HD, R> span, total;
  total.clear();
  const u32* pages = args.pages + args.tokens[tile.first_token].pages_start;
  const u32 n_page = (tile.end + PAGE_LEN - 1) / PAGE_LEN, first_page = tile.start / PAGE_LEN;
  const u32 first_span = args.tokens[tile.first_token].first_span + blockIdx.z;
  const u32 span_end = is_split ? first_span + 1 : (n_page + SPAN_PAGES - 1) / SPAN_PAGES;
  float* weights = shared.weights + warp * PAGE_LEN * R;
  for (u32 s = first_span; s < span_end; s++) {
    span.clear();
    for (u32 p = s * SPAN_PAGES; p < (s + 1) * SPAN_PAGES && p < n_page; p++) {
      if (p < first_page) continue;
      const u64 plane = ((u64)load32(pages + p) * args.n_kv_head + kv_head) * Kv::plane_bytes(head_dim);
      __syncthreads();  // nobody still reads the values before
      Kv::stage_keys(args.keys + plane, head_dim, shared.kv);
      __syncthreads();
      span.take_keys(shared.kv, shared.q + warp * HD, args.keys + plane, head_dim, p * PAGE_LEN,
                     bounds, weights);
      __syncthreads();
      Kv::stage_values(args.values + plane, head_dim, tile.end - p * PAGE_LEN, shared.kv);
      __syncthreads();
      span.take_values(shared.kv, weights, head_dim);
    }
    if (is_split) break;
#pragma unroll
    for (int i = 0; i < R; i++) {
      const Join join(total.seen[i], span.seen[i]);
#pragma unroll
      for (int j = 0; j < 2 * HD / 64; j++) total.sums[i][j] = join.sum(total.sums[i][j], span.sums[i][j]);
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < R; i++) {
    float* to = shared.q + (warp + i * ATTN_WARPS) * HD;
#pragma unroll
    for (int j = 0; j < 2 * HD / 64; j++) {
      const float sum = is_split ? span.sums[i][j] : total.sums[i][j] / total.seen[i].l;
      to[2 * (lane + j / 2 * WARP) + j % 2] = sum;
    }
  }
  __syncthreads();
  if (Kv::IS_ROTATED && !is_split) {
    rotate(shared.q, ATTN_WARPS * R, HD, head_dim, args.n_rotated, args.rotation);
  }
#pragma unroll
  for (int i = 0; i < R; i++) {
    if (rows[i] == ~0u) continue;
    const float* from = shared.q + (warp + i * ATTN_WARPS) * HD;
    float* to = args.out + (u64)(rows[i] / args.n_head) * args.stride +
                rows[i] % args.n_head * head_dim;
    if (is_split) {
      to = args.partials + ((u64)rows[i] * gridDim.z + blockIdx.z) * (2 + head_dim);
      if (lane == 0) {
        to[0] = span.seen[i].m;
        to[1] = span.seen[i].l;
      }
      to += 2;
    }
    for (u32 d = lane; d < head_dim; d += WARP) to[d] = from[d];
  }
}

template <class Kv, int HD, int ROWS>
DEVICE void attention(const AttnArgs& args, AttnShared<HD, ROWS>& shared) {
  const u32 group = args.n_head / args.n_kv_head, n_chunk = (group + ROWS - 1) / ROWS;
  const u32 token_idx = args.first_token + blockIdx.x / n_chunk;
  const Tile tile = tile_of(args.tokens, token_idx, blockIdx.x % n_chunk, group, ROWS);
  if (!tile.n_row || args.tokens[token_idx].first_span + blockIdx.z >= args.tokens[token_idx].span_end) {
    return;
  }
  if (tile.n_row <= ATTN_WARPS) {
    attend<Kv, HD, ROWS, 1>(args, shared, tile);
  } else if (tile.n_row <= 2 * ATTN_WARPS) {
    attend<Kv, HD, ROWS, 2>(args, shared, tile);
  } else {
    attend<Kv, HD, ROWS, ROWS / ATTN_WARPS>(args, shared, tile);
  }
}

// grid (n_tokens * tiles of a token, n_kv_head, spans or 1), 128 threads
#define ATTN_KERNEL(kv, Kv, dim, rows)                                                        \
  extern "C" __global__ void __launch_bounds__(ATTN_THREADS, 2) attn_##kv##_d##dim(           \
      const float* __restrict__ q, const u8* __restrict__ keys, const u8* __restrict__ values, \
      const Token* __restrict__ tokens, const u32* __restrict__ pages,                        \
      float* partials, float* out, u32 n_head, u32 n_kv_head, u32 head_dim, u32 stride,       \
      float scale, u32 n_rotated, float rotation, u32 first_token) {                          \
    __shared__ AttnShared<dim, rows> shared;                                                  \
    attention<Kv, dim, rows>({q, keys, values, tokens, pages, partials, out, n_head,          \
                              n_kv_head, head_dim, stride, scale, n_rotated, rotation,        \
                              first_token},                                                   \
                             shared);                                                         \
  }                                                                                           \
  GPU_KERNEL(attn_##kv##_d##dim)

#define ATTN_KERNELS(kv, Kv)    \
  ATTN_KERNEL(kv, Kv, 64, 16)   \
  ATTN_KERNEL(kv, Kv, 128, 16)  \
  ATTN_KERNEL(kv, Kv, 256, 8)
