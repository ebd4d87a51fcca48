// Attention over keys and values in codes of 8 bits (attn.h); head_dim is a multiple of 16.
//
//   block    32 values of a position and head, the last may be shorter: value = scale * code
//   plane    codes in the order of attn.h, i8; then scales f16: keys [n_block][32],
//            values [32][n_block]
#include "append.h"

struct KvQ8_0 {
  static const bool IS_ROTATED = false;
  METHOD static u32 n_block(u32 head_dim) { return (head_dim + BLOCK_LEN - 1) / BLOCK_LEN; }
  METHOD static u32 plane_bytes(u32 head_dim) {
    return PAGE_LEN * head_dim + 2 * PAGE_LEN * n_block(head_dim);
  }
  METHOD static float key_scale(const u8* plane, u32 head_dim, u32 block, u32 pos) {
    return h2f(load16(plane + PAGE_LEN * head_dim + 2 * (block * PAGE_LEN + pos)));
  }

  METHOD static void put4(float* to, u32 codes, float scale) {
    set_shared128(to, {as_bits(signed_byte_to_float<0>(codes) * scale),
                       as_bits(signed_byte_to_float<1>(codes) * scale),
                       as_bits(signed_byte_to_float<2>(codes) * scale),
                       as_bits(signed_byte_to_float<3>(codes) * scale)});
  }

  METHOD static void put16(float* to, uint4 codes, float scale) {
    put4(to, codes.x, scale);
    put4(to + 4, codes.y, scale);
    put4(to + 8, codes.z, scale);
    put4(to + 12, codes.w, scale);
  }

  METHOD static void stage_keys(const u8* plane, u32 head_dim, float* kv) {
    for (u32 i = threadIdx.x; i < 2 * head_dim; i += ATTN_THREADS) {
      put16(kv + 16 * i, load128(plane + 16 * i), 1.f);
    }
  }

  METHOD static void stage_values(const u8* plane, u32 head_dim, u32 n_pos, float* kv) {
    const u32 pos = threadIdx.x / 4, n = n_block(head_dim);
    for (u32 d = threadIdx.x % 4 * 16; d < head_dim; d += 64) {
      const u32 at = pos * head_dim + d, scale = pos * n + d / BLOCK_LEN;
      if (pos < n_pos) {
        put16(kv + at, load128(plane + at), h2f(load16(plane + PAGE_LEN * head_dim + 2 * scale)));
      } else {
        put16(kv + at, {0, 0, 0, 0}, 0.f);
      }
    }
  }

  // A warp for each block of 32.
  METHOD static void put(const Slot& to, const AppendArgs&) {
    const u32 head_dim = to.head_dim, n = n_block(head_dim), lane = threadIdx.x % WARP;
    u16* scales = (u16*)(to.plane + PAGE_LEN * head_dim);
    for (u32 block = threadIdx.x / WARP; block < n; block += ATTN_WARPS) {
      const u32 d = block * BLOCK_LEN + lane;
      float value = d < head_dim ? to.head[d] : 0.f;
      if (value != value) value = 0.f;
      const float far = warp_max(value < 0.f ? -value : value) / 127.f;
      const u16 scale = f2h(far < 65504.f ? far : 65504.f);
      const float step = h2f(scale);
      float code = mul32(value, step > 0.f ? 1.f / step : 0.f);
      code = code < -127.f ? -127.f : code > 127.f ? 127.f : code;
      if (d < head_dim) to.plane[to.place(d, head_dim)] = (u8)round_to_int(code);
      if (lane == 0) scales[to.place(block, n)] = scale;
    }
  }
};

ATTN_KERNELS(q8_0, KvQ8_0)
APPEND_KERNEL(q8_0, KvQ8_0)
