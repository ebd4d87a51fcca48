// Attention over half keys and values (attn.h); head_dim is a multiple of 4.
#include "append.h"

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

  METHOD static void put(const Slot& to, const AppendArgs&) {
    for (u32 d = threadIdx.x; d < to.head_dim; d += ATTN_THREADS) {
      ((u16*)to.plane)[to.place(d, to.head_dim)] = f2h(to.head[d]);
    }
  }
};

ATTN_KERNELS(f16, KvF16)
APPEND_KERNEL(f16, KvF16)
