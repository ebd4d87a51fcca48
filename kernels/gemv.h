// y[c] = W . x[c] for columns c: the frame of every multiplication, for few columns and for many.
//
//   gemv    1 to 8 columns    a warp makes 4 strips, a lane every 8th part of the 4 rows of one:
//                             lane % 8 is its part in each group, lane / 8 its strip
//   gemm    16 or 8 columns   the same lanes; inputs come through shared memory, a lane unpacks
//                             its rows once for all columns, 4 warps have 64 rows
//   split   1, or 4: a warp has one strip and deals out its groups to the four spans of 8 lanes
//
// A column's sums are formed in one order, whatever the number of columns and whichever kernel:
//
//   part     Form::dot, in halves; d * sum - m * sum of inputs goes to f32
//   lane     parts of groups g = span, span + split, ..., one after another
//   span     lanes 0 + 4, 1 + 5, ...; then 2 apart, then neighbours
//   row      spans one after another
//
// So a prompt's bits are those of the steps, and a sequence's do not depend on its neighbours. What
// that costs the gemm: sums of 32 go to f32, where 128 would do.
//
// A type is a Form, made from a group and a part (`GROUP_BYTES`): `row(r)` unpacks what the lane
// multiplies of a row, `dot(row, input, sum)` returns `sum` plus the part's share.
//
// A gemv is bound by memory on the device if a weight costs at most about 4 instructions, a gemm by
// instructions: 16 of 24 are multiply-adds of two (docs/cuda.md).
#pragma once
#include "strip.h"

#define GEMV_THREADS 64
#define GEMM_THREADS 128
#define SPANS (WARP / GROUP_PARTS)
#define GEMM_STRIPS (GEMM_THREADS / GROUP_PARTS)
#define GROUP_WORDS (INPUT_GROUP_BYTES / 16)

struct MulArgs {
  const u8* weights;  // strips
  const u8* inputs;   // as many columns as the kernel has, also where fewer are wanted
  const float* bias;  // [n_rows], or null
  float* y;           // [n_cols, y_stride]
  u32 n_group, n_rows, n_cols, y_stride;
  u32 add;    // whether to add to what `y` holds
  u32 split;  // 1 or 4

  // A strip; behind the last, lanes without one read the last.
  METHOD const u8* strip(u32 strip_idx, u32 group_bytes) const {
    const u32 last = (n_rows - 1) / STRIP_ROWS;
    return weights + (u64)(strip_idx < last ? strip_idx : last) * (n_group * group_bytes);
  }

  // The sums of a value, 4 c + row of the strip, go out.
  METHOD void store(u32 strip_idx, u32 first_col, u32 value_idx, float sum) const {
    const u32 row = strip_idx * STRIP_ROWS + value_idx % STRIP_ROWS;
    const u32 c = first_col + value_idx / STRIP_ROWS;
    if (row >= n_rows || c >= n_cols) return;
    const float unit = as_float(load32(inputs + c * input_bytes(n_group)));
    const float value = fma32(sum, unit, bias ? bias[row] : 0.f);
    float* out = y + (u64)c * y_stride + row;
    *out = add ? *out + value : value;
  }
};

// How many values a lane has left of N when eight lanes have summed theirs.
template <int N> struct Left { static const int VALUES = N < GROUP_PARTS ? 1 : N / GROUP_PARTS; };

// Each of the N values summed over the 8 lanes of a span: the lane of part p ends with values
// `p * N / 8` and on. Each step halves what a lane holds; the pairs that are added are the same for
// every N.
template <int N, int STEP = GROUP_PARTS / 2> DEVICE void span_sums(const float* v, float* out) {
  if constexpr (STEP == 0) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = v[i];
  } else if constexpr (N == 1) {
    const float sum = v[0] + __shfl_xor_sync(FULL_WARP, v[0], STEP);
    span_sums<1, STEP / 2>(&sum, out);
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
    span_sums<N / 2, STEP / 2>(half, out);
  }
}

template <class Form, int COLS> DEVICE void gemv(const MulArgs& args) {
  const int N = COLS * STRIP_ROWS, LEFT = Left<N>::VALUES;
  const u32 part_idx = threadIdx.x % GROUP_PARTS, span = threadIdx.x % WARP / GROUP_PARTS;
  const u32 warp_idx = blockIdx.x * (GEMV_THREADS / WARP) + threadIdx.x / WARP;
  const bool is_split = args.split != 1;
  if ((is_split ? warp_idx : warp_idx * SPANS) * STRIP_ROWS >= args.n_rows) return;
  const u32 strip_idx = is_split ? warp_idx : warp_idx * SPANS + span;
  const u8* strip = args.strip(strip_idx, Form::GROUP_BYTES);
  const u8* groups = args.inputs + INPUT_HEADER_BYTES;
  const u32 column_bytes = input_bytes(args.n_group);
  float sums[N] = {};
  for (u32 g = is_split ? span : 0; g < args.n_group; g += args.split) {
    const Form form(strip + g * Form::GROUP_BYTES, part_idx);
#pragma unroll
    for (int c = 0; c < COLS; c++) {
      const Input in = load_input(groups + c * column_bytes + g * INPUT_GROUP_BYTES, part_idx);
#pragma unroll
      for (int r = 0; r < STRIP_ROWS; r++) {
        float& sum = sums[c * STRIP_ROWS + r];
        sum = Form::dot(form.row(r), in, sum);
      }
    }
  }
  float left[LEFT];
  span_sums<N>(sums, left);
  if (is_split) {
#pragma unroll
    for (int i = 0; i < LEFT; i++) {
      const float mine = left[i];
      left[i] = __shfl_sync(FULL_WARP, mine, part_idx);
#pragma unroll
      for (int s = 1; s < SPANS; s++) {
        left[i] += __shfl_sync(FULL_WARP, mine, s * GROUP_PARTS + part_idx);
      }
    }
    if (span) return;
  }
  if (N < GROUP_PARTS && part_idx % (GROUP_PARTS / N)) return;
#pragma unroll
  for (int i = 0; i < LEFT; i++) args.store(strip_idx, 0, part_idx * N / GROUP_PARTS + i, left[i]);
}

template <class Form, int COLS> DEVICE void gemm(const MulArgs& args, u8* staged) {
  const int N = COLS * STRIP_ROWS, LEFT = Left<N>::VALUES;
  const u32 part_idx = threadIdx.x % GROUP_PARTS, first_col = blockIdx.x * COLS;
  const u32 strip_idx = blockIdx.y * GEMM_STRIPS + threadIdx.x / GROUP_PARTS;
  const u8* strip = args.strip(strip_idx, Form::GROUP_BYTES);
  const u32 column_bytes = input_bytes(args.n_group);
  const u8* groups = args.inputs + first_col * column_bytes + INPUT_HEADER_BYTES;
  float total[LEFT] = {};
  for (u32 first = 0; first < args.split; first++) {
    float sums[N] = {};
    for (u32 g = first; g < args.n_group; g += args.split) {
      const Form form(strip + g * Form::GROUP_BYTES, part_idx);
      __syncthreads();  // nobody still reads the group before
#pragma unroll
      for (u32 k = 0; k < COLS * GROUP_WORDS; k += GEMM_THREADS) {
        const u32 i = k + threadIdx.x, c = i / GROUP_WORDS, word = i % GROUP_WORDS;
        if (i < COLS * GROUP_WORDS) {
          const u8* from = groups + c * column_bytes + g * INPUT_GROUP_BYTES + word * 16;
          set_shared128(staged + i * 16, load128(from));
        }
      }
      __syncthreads();
      typename Form::Row rows[STRIP_ROWS];
#pragma unroll
      for (int r = 0; r < STRIP_ROWS; r++) rows[r] = form.row(r);
#pragma unroll
      for (int c = 0; c < COLS; c++) {
        const Input in = shared_input(staged + c * INPUT_GROUP_BYTES, part_idx);
#pragma unroll
        for (int r = 0; r < STRIP_ROWS; r++) {
          float& sum = sums[c * STRIP_ROWS + r];
          sum = Form::dot(rows[r], in, sum);
        }
      }
    }
    float left[LEFT];
    span_sums<N>(sums, left);
#pragma unroll
    for (int i = 0; i < LEFT; i++) total[i] = first ? total[i] + left[i] : left[i];
  }
#pragma unroll
  for (int i = 0; i < LEFT; i++) args.store(strip_idx, first_col, part_idx * LEFT + i, total[i]);
}

#define MUL_PARAMETERS                                                                      \
  const u8 *__restrict__ weights, const u8 *__restrict__ inputs,                            \
      const float *__restrict__ bias, float *y, u32 n_group, u32 n_rows, u32 n_cols,        \
      u32 y_stride, u32 add, u32 split
#define MUL_ARGS {weights, inputs, bias, y, n_group, n_rows, n_cols, y_stride, add, split}

// grid (warps / 2), 64 threads; a warp has 4 / split strips
#define GEMV_KERNEL(type, Form, cols)                                                        \
  extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 4)                              \
      gemv_##type##_f16_c##cols(MUL_PARAMETERS) {                                            \
    gemv<Form, cols>(MUL_ARGS);                                                              \
  }                                                                                          \
  GPU_KERNEL(gemv_##type##_f16_c##cols)

// grid (columns / cols, strips / 16), 128 threads
#define GEMM_KERNEL(type, Form, cols)                                                        \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 2)                              \
      gemm_##type##_f16(MUL_PARAMETERS) {                                                    \
    __shared__ __align__(16) u8 staged[cols * INPUT_GROUP_BYTES];                            \
    gemm<Form, cols>(MUL_ARGS, staged);                                                      \
  }                                                                                          \
  GPU_KERNEL(gemm_##type##_f16)

// A batch of 3 runs the kernel for 4, and so on.
#define MUL_KERNELS(type, Form)   \
  GEMV_KERNEL(type, Form, 1)      \
  GEMV_KERNEL(type, Form, 2)      \
  GEMV_KERNEL(type, Form, 4)      \
  GEMV_KERNEL(type, Form, 8)      \
  GEMM_KERNEL(type, Form, 16)

// For types that few files have: the driver compiles at the first start what is here.
#define MUL_KERNELS_FEW(type, Form) \
  GEMV_KERNEL(type, Form, 1)        \
  GEMV_KERNEL(type, Form, 4)        \
  GEMM_KERNEL(type, Form, 8)
