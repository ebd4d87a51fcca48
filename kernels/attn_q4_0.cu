// Attention over keys and values in codes of 4 bits, of rotated heads (attn.h); head_dim is a
// multiple of 16.
//
//   rotation  x' = H x / sqrt(n), H: Hadamard's matrix of n, the largest power of two in head_dim
//   block     32 values of a position and head, the last may be shorter: x' = scale * (code - 8)
//   bytes     value j of a block low, value j + length / 2 high; head_dim / 2 of a position, in the
//             order of attn.h; then scales f16: keys [n_block][32], values [32][n_block]
//
// The rotation keeps products, so queries are rotated to meet the keys, and what was summed of the
// values is rotated back.
#include "append.h"

#define ZERO_CODE 8.f

DEVICE float inverse(float step) { return step != 0.f ? 1.f / step : 0.f; }

// The nearest code.
DEVICE float code_of(float x, float inverse) {
  const float code = mul32(x, inverse) + ZERO_CODE;
  return code > 15.f ? 15.f : code > 0.f ? code : 0.f;
}

// What is tried, as a share of the scale that reaches the largest value.
DEVICE float shrink_of(u32 i) {
  return i == 0 ? 1.f : i == 1 ? 0.95f : i == 2 ? 0.9f : i == 3 ? 0.85f : 0.8f;
}

// The scale of a block of `n` values that is such a share, and its error.
DEVICE float block_error(const float* x, u32 n, float shrink, u16* scale) {
  float far = 0.f;
  for (u32 i = 0; i < n; i++) {
    const float v = x[i];
    if ((v < 0.f ? -v : v) > (far < 0.f ? -far : far)) far = v;
  }
  float step = mul32(far, shrink) / -ZERO_CODE;
  step = step < -65504.f ? -65504.f : step > 65504.f ? 65504.f : step;
  *scale = f2h(step);
  step = h2f(*scale);
  float error = 0.f;
  for (u32 i = 0; i < n; i++) {
    const float code = (float)round_to_int(code_of(x[i], inverse(step)));
    const float miss = x[i] - mul32(step, code - ZERO_CODE);
    error += mul32(miss, miss);
  }
  return error;
}

struct KvQ4_0 {
  static const bool IS_ROTATED = true;
  METHOD static u32 n_block(u32 head_dim) { return (head_dim + BLOCK_LEN - 1) / BLOCK_LEN; }
  METHOD static u32 plane_bytes(u32 head_dim) {
    return PAGE_LEN * head_dim / 2 + 2 * PAGE_LEN * n_block(head_dim);
  }
  METHOD static float key_scale(const u8* plane, u32 head_dim, u32 block, u32 pos) {
    return h2f(load16(plane + PAGE_LEN * head_dim / 2 + 2 * (block * PAGE_LEN + pos)));
  }
  // From a low value of a block to the high one of its byte.
  METHOD static u32 half_block(u32 head_dim, u32 block) {
    const u32 rest = head_dim - block * BLOCK_LEN;
    return (rest < BLOCK_LEN ? rest : BLOCK_LEN) / 2;
  }

  // Four codes, of the low nibble of each byte.
  METHOD static void put4(float* to, u32 bytes, float scale) {
    const u32 codes = bytes & 0x0f0f0f0fu;
    set_shared128(to, {as_bits((byte_to_float<0>(codes) - ZERO_CODE) * scale),
                       as_bits((byte_to_float<1>(codes) - ZERO_CODE) * scale),
                       as_bits((byte_to_float<2>(codes) - ZERO_CODE) * scale),
                       as_bits((byte_to_float<3>(codes) - ZERO_CODE) * scale)});
  }

  // Row i / 2 of the plane is that of byte i / 2 of every position.
  METHOD static void stage_keys(const u8* plane, u32 head_dim, float* kv) {
    for (u32 i = threadIdx.x; i < head_dim; i += ATTN_THREADS) {
      const u32 block = i / 2 / (BLOCK_LEN / 2), j = i / 2 % (BLOCK_LEN / 2);
      const uint4 bytes = load128(plane + 16 * i);
      const u32 words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
      float* low = kv + (block * BLOCK_LEN + j) * PAGE_LEN + i % 2 * 16;
      float* high = low + half_block(head_dim, block) * PAGE_LEN;
#pragma unroll
      for (int k = 0; k < 4; k++) {
        put4(low + 4 * k, words[k], 1.f);
        put4(high + 4 * k, words[k] >> 4, 1.f);
      }
    }
  }

  METHOD static void stage_values(const u8* plane, u32 head_dim, u32 n_pos, float* kv) {
    const u32 pos = threadIdx.x / 4, n = n_block(head_dim);
    for (u32 i = threadIdx.x % 4 * 8; i < head_dim / 2; i += 32) {
      const u32 block = i / (BLOCK_LEN / 2), scale = pos * n + block;
      float* low = kv + pos * head_dim + block * BLOCK_LEN + i % (BLOCK_LEN / 2);
      float* high = low + half_block(head_dim, block);
      uint2 bytes = {0, 0};
      float step = 0.f;
      if (pos < n_pos) {
        bytes = load64(plane + pos * head_dim / 2 + i);
        step = h2f(load16(plane + PAGE_LEN * head_dim / 2 + 2 * scale));
      }
      put4(low, bytes.x, step);
      put4(low + 4, bytes.y, step);
      put4(high, bytes.x >> 4, step);
      put4(high + 4, bytes.y >> 4, step);
    }
  }

  // The rotated head. Five lanes of a warp try five scales of a block, each in the order in which
  // the CPU's cache does.
  METHOD static void put(const Slot& to, const AppendArgs& args) {
    rotate(to.head, 1, 256, to.head_dim, args.n_rotated, args.rotation);
    const u32 head_dim = to.head_dim, n = n_block(head_dim), lane = threadIdx.x % WARP;
    u16* scales = (u16*)(to.plane + PAGE_LEN * head_dim / 2);
    for (u32 block = threadIdx.x / WARP; block < n; block += ATTN_WARPS) {
      const u32 half = half_block(head_dim, block);
      const float* values = to.head + block * BLOCK_LEN;
      u16 scale = 0;
      const float error = block_error(values, 2 * half, shrink_of(lane % 5), &scale);
      float best_error = as_float(0x7f800000u), best = 0.f;
#pragma unroll
      for (int s = 0; s < 5; s++) {
        const float other = __shfl_sync(FULL_WARP, error, s);
        const float step = __shfl_sync(FULL_WARP, h2f(scale), s);
        if (other < best_error) {
          best_error = other;
          best = step;
        }
      }
      if (lane < half) {
        const u32 low = (u32)round_to_int(code_of(values[lane], inverse(best)));
        const u32 high = (u32)round_to_int(code_of(values[lane + half], inverse(best)));
        to.plane[to.place(block * (BLOCK_LEN / 2) + lane, head_dim / 2)] = (u8)(low | high << 4);
      }
      if (lane == 0) scales[to.place(block, n)] = f2h(best);
    }
  }
};

ATTN_KERNELS(q4_0, KvQ4_0)
APPEND_KERNEL(q4_0, KvQ4_0)
