// Attention over half keys and values (attn.h); head_dim is a multiple of 4.
#include "attn.h"

struct KvF16 {
  static const bool IS_ROTATED = false;
  METHOD static u32 plane_bytes(u32 head_dim) { return 2 * PAGE_LEN * head_dim; }
  METHOD static float key_scale(const u8*, u32, u32, u32) { return 1.f; }

  METHOD static void put4(float* to, uint2 halves) {
    set_shared128(to, {as_bits(half_low(halves.x)), as_bits(half_high(halves.x)),
                       as_bits(half_low(halves.y)), as_bits(half_high(halves.y))});
  }

  METHOD static void stage_keys(const u8* plane, u32 head_dim, float* kv) {
    for (u32 i = threadIdx.x; i < 4 * head_dim; i += ATTN_THREADS) {
      const uint4 halves = load128(plane + 16 * i);
      put4(kv + 8 * i, {halves.x, halves.y});
      put4(kv + 8 * i + 4, {halves.z, halves.w});
    }
  }

  METHOD static void stage_values(const u8* plane, u32 head_dim, u32 n_pos, float* kv) {
    const u32 pos = threadIdx.x / 4;
    for (u32 d = threadIdx.x % 4 * 4; d < head_dim; d += 16) {
      const u32 at = pos * head_dim + d;
      // What was never written may be no number.
      put4(kv + at, pos < n_pos ? load64(plane + 2 * at) : uint2{0, 0});
    }
  }
};

ATTN_KERNELS(f16, KvF16)

// Writes the key and value of each token into its slot.
//   grid (ceil(width / 128), n_tokens), 128 threads; k, v [n_tokens, stride]
extern "C" __global__ void __launch_bounds__(ATTN_THREADS)
    kv_append_f16(const float* __restrict__ k, const float* __restrict__ v, u8* keys, u8* values,
                  const Token* __restrict__ tokens, u32 n_kv_head, u32 head_dim, u32 stride) {
  const u32 i = blockIdx.x * ATTN_THREADS + threadIdx.x;
  if (i >= n_kv_head * head_dim) return;
  const Token token = tokens[blockIdx.y];
  const u64 plane = plane_of(token, n_kv_head, i / head_dim, KvF16::plane_bytes(head_dim));
  const u32 pos = token.slot % PAGE_LEN, d = i % head_dim;
  const u64 from = (u64)blockIdx.y * stride + i;
  ((u16*)(keys + plane))[d * PAGE_LEN + pos] = f2h(k[from]);
  ((u16*)(values + plane))[pos * head_dim + d] = f2h(v[from]);
}
GPU_KERNEL(kv_append_f16)
