// Keys and values on their way into the cache (attn.h), and queries and keys turned before that.
//
//   k, v [n_tokens, stride], q [n_tokens, q_stride] f32: keys are turned as they are stored, not
//   where they stand; queries in place
//   angles [n_tokens, n_pair] (cos, sin), or null: pair i of a head are its neighbours 2 i and
//   2 i + 1, or, with `halves`, the values i and i + n_pair; those past 2 n_pair stay
//   grid (n_kv_head, n_tokens, 2: key and value, or 3: the queries that share the key), 128 threads
//
// Bytes are those of the CPU's cache: each product is rounded, as there. Bound by launches.
#pragma once
#include "attn.h"

enum AppendPart { KEY = 0, VALUE = 1, QUERY = 2 };

struct AppendArgs {
  float* q;
  const float *k, *v;
  u8 *keys, *values;
  const Token* tokens;
  const float2* angles;
  u32 n_kv_head, head_dim, stride;
  u32 group, q_stride, n_pair, halves;  // group: query heads of a key head
  u32 n_rotated;
  float rotation;
};

// A head in shared memory, and where it goes.
struct Slot {
  float* head;
  u8* plane;
  bool is_key;
  u32 pos, head_dim;

  // The place of number i of n of this position.
  METHOD u32 place(u32 i, u32 n) const { return is_key ? i * PAGE_LEN + pos : pos * n + i; }
};

// Turns the heads of a row of the token blockIdx.y, by the whole block.
DEVICE void turn(float* row, u32 n_head, const AppendArgs& args) {
  const float2* angles = args.angles + (u64)blockIdx.y * args.n_pair;
  for (u32 i = threadIdx.x; i < n_head * args.n_pair; i += ATTN_THREADS) {
    const u32 pair_idx = i % args.n_pair;
    float* head = row + i / args.n_pair * args.head_dim;
    float* a = head + (args.halves ? pair_idx : 2 * pair_idx);
    float* b = a + (args.halves ? args.n_pair : 1);
    const float2 angle = angles[pair_idx];
    const float x0 = *a, x1 = *b;
    *a = mul32(x0, angle.x) - mul32(x1, angle.y);
    *b = mul32(x0, angle.y) + mul32(x1, angle.x);
  }
}

// `head` is shared memory.
template <class Kv> DEVICE void append(const AppendArgs& args, float (&head)[256]) {
  const u32 head_dim = args.head_dim, kv_head = blockIdx.x, token_idx = blockIdx.y;
  if (blockIdx.z == QUERY) {
    float* queries = args.q + (u64)token_idx * args.q_stride + kv_head * args.group * head_dim;
    turn(queries, args.group, args);
    return;
  }
  const bool is_key = blockIdx.z == KEY;
  const float* x = (is_key ? args.k : args.v) + (u64)token_idx * args.stride + kv_head * head_dim;
  for (u32 d = threadIdx.x; d < head_dim; d += ATTN_THREADS) head[d] = x[d];
  __syncthreads();
  if (is_key && args.angles) turn(head, 1, args);
  __syncthreads();
  const u32 slot = args.tokens[token_idx].slot, page = slot / PAGE_LEN;
  u8* plane = is_key ? args.keys : args.values;
  plane += ((u64)page * args.n_kv_head + kv_head) * Kv::plane_bytes(head_dim);
  Kv::put({head, plane, is_key, slot % PAGE_LEN, head_dim}, args);
}

#define APPEND_KERNEL(kv, Kv)                                                                 \
  extern "C" __global__ void __launch_bounds__(ATTN_THREADS) rope_append_##kv(                \
      float* q, const float* __restrict__ k, const float* __restrict__ v, u8* keys,           \
      u8* values, const Token* __restrict__ tokens, const float2* __restrict__ angles,        \
      u32 n_kv_head, u32 head_dim, u32 stride, u32 group, u32 q_stride, u32 n_pair,           \
      u32 halves, u32 n_rotated, float rotation) {                                            \
    __shared__ float head[256];                                                               \
    append<Kv>({q, k, v, keys, values, tokens, angles, n_kv_head, head_dim, stride, group,    \
                q_stride, n_pair, halves, n_rotated, rotation},                               \
               head);                                                                         \
  }                                                                                           \
  GPU_KERNEL(rope_append_##kv)
