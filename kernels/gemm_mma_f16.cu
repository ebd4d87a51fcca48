// y[c] = W . x[c] + bias on tensor cores, for devices of capability 8.0 and above; W in N4, Q4_K or
// Q4_0, in the strips and with the inputs of every other device.
//
//   block    128 rows x 64 columns; a warp has 32 rows, as two tiles of 16
//   group    the block's 64 input columns come to shared memory, part after part
//   part     two mma.m16n8k16 for each tile and 8 columns: lane 4 g + t holds of rows g and g + 8
//            word t, weights 8 t .. 8 t + 7, and of column g the inputs 8 t .. 8 t + 7
//
// Which weights meet in one mma is free as long as both sides agree: pairs 4 t and 4 t + 1 of each
// word in the first, the other two in the second, so a lane unpacks what it loaded, and an input is
// one load of 16 bytes.
//
// Weights become halves, 16 times their value: masked codes are subnormals (codes4.h), a power of
// two makes them numbers, scale and minimum follow as halves. Sums stay in f32 for the whole row.
// So this is the one kernel whose bits are not those of the steps: a tensor core adds 16 products
// at once, in an order of its own. A column's bits still do not depend on its neighbours.
//
// Bound by instructions: 32 mma and about 125 others for a part of 32 rows and 64 columns.
#if defined(GPU_SIM) || __CUDA_ARCH__ >= 800
#include "codes4.h"

#define MMA_THREADS 128
#define MMA_ROWS 128
#define MMA_COLS 64
#define WARP_TILES 2
#define COL_TILES (MMA_COLS / 8)
// Inputs of a part; 16 bytes more, so that the 8 parts of a column lie in other banks.
#define STAGED_PART_BYTES (MMA_COLS * 64 + 16)
#define WEIGHT_SCALE 16.f

// A pair of a word to weights: code * d - m, d with the factor 2^9 that is left of its exponent.
struct Factors {
  u32 d, m;
};

DEVICE u32 both_halves(float v) { return (u32)f2h(v) * 0x00010001u; }
DEVICE Factors factors(float d, float m) {
  return {both_halves(d * (WEIGHT_SCALE * 512.f)), both_halves(m * -WEIGHT_SCALE)};
}

#define PAIR_2_15 0x78007800u
#define PAIR_2_11 0x68006800u

DEVICE u32 weights_of(u32 masked, u32 power, const Factors& f) {
  return h2fma(h2fma(masked, power, 0), f.d, f.m);
}

// What a lane loads of a part of a row: word t of its codes, scale and minimum.
struct MmaN4 {
  static const u32 SCALES_AT = HEAD_BYTES, CODES_AT = SCALES_AT + GROUP_PARTS * 8;
  METHOD static Factors row_factors(const u8* group, u32 r, u32 part_idx) {
    const u32 head = load32(group + 4 * r);
    const u32 fields = load16(group + SCALES_AT + part_idx * 8 + 2 * r);
    return factors(half_low(head) * (float)(fields & 255), half_high(head) * (float)(fields >> 8));
  }
};

struct MmaQ4_0 {
  static const u32 SCALES_AT = 0, CODES_AT = GROUP_PARTS * 8;
  METHOD static Factors row_factors(const u8* group, u32 r, u32 part_idx) {
    const float d = h2f(load16(group + part_idx * 8 + 2 * r));
    return factors(d, 8.f * d);
  }
};

struct MmaArgs {
  const u8 *weights, *inputs;
  const float* bias;
  float* y;
  u32 n_group, n_rows, n_cols, y_stride, add;
};

template <class Form> DEVICE void gemm_mma(const MmaArgs& args, u8* staged) {
  const u32 group_bytes = Form::CODES_AT + CODES4_PLANES * PLANE_BYTES;
  const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const u32 first_col = blockIdx.x * MMA_COLS, column_bytes = input_bytes(args.n_group);
  const u32 first_row = blockIdx.y * MMA_ROWS + threadIdx.x / WARP * 16 * WARP_TILES;
  const u8* columns = args.inputs + first_col * column_bytes + INPUT_HEADER_BYTES;
  // Strips of the lane's rows: g and g + 8 of each tile; those behind the last read the last.
  const u32 last = (args.n_rows - 1) / STRIP_ROWS;
  const u8* strips[2 * WARP_TILES];
#pragma unroll
  for (int i = 0; i < 2 * WARP_TILES; i++) {
    const u32 strip_idx = (first_row + 8 * i + g) / STRIP_ROWS;
    strips[i] = args.weights +
                (u64)(strip_idx < last ? strip_idx : last) * (args.n_group * group_bytes);
  }
  float sums[WARP_TILES][COL_TILES][4] = {};
  for (u32 group_idx = 0; group_idx < args.n_group; group_idx++) {
    __syncthreads();  // nobody still reads the group before
    for (u32 i = threadIdx.x; i < MMA_COLS * 32; i += MMA_THREADS) {
      const u32 c = i / 32, j = i / 8 % 4, part_idx = i % 8;
      const u32 there = first_col + c < args.n_cols ? c : 0;
      const u8* from = columns + there * column_bytes + group_idx * INPUT_GROUP_BYTES;
      set_shared128(staged + part_idx * STAGED_PART_BYTES + c * 64 + j * 16,
                    load128(from + j * PLANE_BYTES + part_idx * 16));
    }
    __syncthreads();
#pragma unroll 2
    for (u32 part_idx = 0; part_idx < GROUP_PARTS; part_idx++) {
      u32 a[WARP_TILES][2][4];
#pragma unroll
      for (int i = 0; i < 2 * WARP_TILES; i++) {
        const u32 r = g % STRIP_ROWS;
        const u8* group = strips[i] + group_idx * group_bytes;
        const u32 word =
            load32(group + Form::CODES_AT + r * PLANE_BYTES + part_idx * 16 + 4 * t);
        const Factors f = Form::row_factors(group, r, part_idx);
        u32(&tile)[2][4] = a[i / 2];
        tile[0][i % 2] = weights_of(word & 0x000f000fu, PAIR_2_15, f);
        tile[0][i % 2 + 2] = weights_of(word & 0x00f000f0u, PAIR_2_11, f);
        tile[1][i % 2] = weights_of(word >> 8 & 0x000f000fu, PAIR_2_15, f);
        tile[1][i % 2 + 2] = weights_of(word >> 8 & 0x00f000f0u, PAIR_2_11, f);
      }
#pragma unroll
      for (int n = 0; n < COL_TILES; n++) {
        const uint4 x =
            shared128(staged + part_idx * STAGED_PART_BYTES + (n * 8 + g) * 64 + t * 16);
#pragma unroll
        for (int i = 0; i < WARP_TILES; i++) {
          mma_16_8_16(sums[i][n], a[i][0], x.x, x.y);
          mma_16_8_16(sums[i][n], a[i][1], x.z, x.w);
        }
      }
    }
  }
  // A lane has of each tile rows g and g + 8 of columns 2 t and 2 t + 1.
#pragma unroll
  for (int k = 0; k < WARP_TILES * COL_TILES * 4; k++) {
    const u32 i = k / (COL_TILES * 4), n = k / 4 % COL_TILES, v = k % 4;
    const u32 row = first_row + 16 * i + g + v / 2 * 8, c = first_col + n * 8 + 2 * t + v % 2;
    if (row >= args.n_rows || c >= args.n_cols) continue;
    // The unit takes off 2^-24 that codes have elsewhere, here there is the weights' own.
    const float unit = as_float(load32(args.inputs + c * column_bytes));
    const float sum = sums[i][n][v] * (5.9604645e-8f / WEIGHT_SCALE);
    const float value = fma32(sum, unit, args.bias ? args.bias[row] : 0.f);
    float* out = args.y + (u64)c * args.y_stride + row;
    *out = args.add ? *out + value : value;
  }
}

// grid (columns / 64, rows / 128), 128 threads
#define MMA_KERNEL(type, Form)                                                              \
  extern "C" __global__ void __launch_bounds__(MMA_THREADS, 2) gemm_##type##_mma(           \
      const u8* __restrict__ weights, const u8* __restrict__ inputs,                        \
      const float* __restrict__ bias, float* y, u32 n_group, u32 n_rows, u32 n_cols,        \
      u32 y_stride, u32 add) {                                                              \
    __shared__ __align__(16) u8 staged[GROUP_PARTS * STAGED_PART_BYTES];                    \
    gemm_mma<Form>({weights, inputs, bias, y, n_group, n_rows, n_cols, y_stride, add},      \
                   staged);                                                                 \
  }                                                                                         \
  GPU_KERNEL(gemm_##type##_mma)

MMA_KERNEL(n4, MmaN4)
MMA_KERNEL(q4_0, MmaQ4_0)
#endif
