// y[c] = W . x[c] for 1 to 8 input columns: the frame of every matrix-vector kernel.
//
//   grid     (strips / 4), 128 threads: a warp makes one strip, 4 rows
//   lane     part `lane`, `lane + 32`, ... of the 4 rows; the input is read once for them
//   end      32 lanes' sums, exchanged so that each step halves what a lane holds
//
// A column's sums are formed in the same order whatever the number of columns, so a sequence's
// results do not depend on its neighbours. No barrier, no shared memory: warps are independent.
//
// A type is a Form: `GROUP_BYTES`, and a struct made from a group and a part, whose
// `dot(row, input, sum)` returns `sum` plus the part's share.
//
// Bound by memory on the device if a weight costs at most about 4 instructions (docs/cuda.md).
#pragma once
#include "strip.h"

#define GEMV_THREADS 128

// Each of the N values summed over the lanes whose numbers differ below 2 STEP; of a warp, lane `l`
// ends with value `l / (32 / N)`. The pairs that are added are the same for every N.
template <int N, int STEP = WARP / 2> DEVICE float warp_sum_each(const float* v) {
  if constexpr (STEP == 0) {
    return v[0];
  } else if constexpr (N == 1) {
    const float sum = v[0] + __shfl_xor_sync(FULL_WARP, v[0], STEP);
    return warp_sum_each<1, STEP / 2>(&sum);
  } else {
    const bool upper = threadIdx.x & STEP;
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      // Values, not places, are chosen between: places would force `v` into memory.
      const float first = v[i], second = v[i + N / 2];
      const float sent = __shfl_xor_sync(FULL_WARP, upper ? first : second, STEP);
      half[i] = (upper ? second : first) + sent;
    }
    return warp_sum_each<N / 2, STEP / 2>(half);
  }
}

struct GemvArgs {
  const u8* weights;  // strips
  const u8* inputs;   // as many columns as the kernel has, also where fewer are wanted
  const float* bias;  // [n_rows], or null
  float* y;           // [n_cols, y_stride]
  u32 n_group, n_rows, n_cols, y_stride;
  u32 add;            // whether to add to what `y` holds
};

template <class Form, int COLS> DEVICE void gemv(const GemvArgs& args) {
  const u32 lane = threadIdx.x % WARP;
  const u32 strip_idx = blockIdx.x * (GEMV_THREADS / WARP) + threadIdx.x / WARP;
  if (strip_idx * STRIP_ROWS >= args.n_rows) return;
  const u8* strip = args.weights + (u64)strip_idx * (args.n_group * Form::GROUP_BYTES);
  const u32 column_bytes = input_bytes(args.n_group);
  float sums[COLS * STRIP_ROWS] = {};
  for (u32 group_idx = lane / GROUP_PARTS; group_idx < args.n_group;
       group_idx += WARP / GROUP_PARTS) {
    const u32 part_idx = lane % GROUP_PARTS;
    const Form form(strip + group_idx * Form::GROUP_BYTES, part_idx);
#pragma unroll
    for (int c = 0; c < COLS; c++) {
      const Input in = load_input(args.inputs + c * column_bytes, group_idx, part_idx);
#pragma unroll
      for (int r = 0; r < STRIP_ROWS; r++) {
        sums[c * STRIP_ROWS + r] = form.dot(r, in, sums[c * STRIP_ROWS + r]);
      }
    }
  }
  const float sum = warp_sum_each<COLS * STRIP_ROWS>(sums);
  const u32 lanes_each = WARP / (COLS * STRIP_ROWS);
  const u32 value_idx = lane / lanes_each, c = value_idx / STRIP_ROWS;
  const u32 row = strip_idx * STRIP_ROWS + value_idx % STRIP_ROWS;
  if (lane % lanes_each || row >= args.n_rows || c >= args.n_cols) return;
  float y = sum * as_float(load32(args.inputs + c * column_bytes));
  if (args.bias) y += args.bias[row];
  float* out = args.y + (u64)c * args.y_stride + row;
  *out = args.add ? *out + y : y;
}

#define GEMV_KERNEL(name, Form, cols)                                                       \
  extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 2) name##_c##cols(              \
      const u8* __restrict__ weights, const u8* __restrict__ inputs,                        \
      const float* __restrict__ bias, float* y, u32 n_group, u32 n_rows, u32 n_cols,        \
      u32 y_stride, u32 add) {                                                              \
    gemv<Form, cols>({weights, inputs, bias, y, n_group, n_rows, n_cols, y_stride, add});   \
  }                                                                                         \
  GPU_KERNEL(name##_c##cols)

// A batch of 3 runs the kernel for 4, and so on.
#define GEMV_KERNELS(name, Form)   \
  GEMV_KERNELS_FEW(name, Form)     \
  GEMV_KERNEL(name, Form, 2)       \
  GEMV_KERNEL(name, Form, 8)

// For types that few files have: the driver compiles at the first start what is here.
#define GEMV_KERNELS_FEW(name, Form) \
  GEMV_KERNEL(name, Form, 1)         \
  GEMV_KERNEL(name, Form, 4)
