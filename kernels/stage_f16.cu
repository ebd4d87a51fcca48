// Brings input columns into the form that products read (stage.h), alone or together with the
// operation that makes them.
//
//   x, out [n_cols, stride] f32  ->  inputs: columns of halves and sums, each behind its unit
//   grid (n_cols), 256 threads; 512 where a value takes an exponential and rows are the widest
//
// What makes the rows writes them as well, as it does alone and with the same bits: adapters read
// them. Bound by launches: a step of one token has a few KiB for each.
#include "activate.h"
#include "norm.h"
#include "stage.h"

#define STAGE_THREADS 256
#define GLU_THREADS 512

extern "C" __global__ void __launch_bounds__(STAGE_THREADS)
    stage_f16(const float* __restrict__ x, u8* inputs, u32 n, u32 stride, u32 n_group) {
  __shared__ float warp_far[STAGE_THREADS / WARP];
  x += (u64)blockIdx.x * stride;
  stage_row<STAGE_THREADS>(x, inputs, n, n_group, warp_far, [&](u32 i) { return x[i]; });
}
GPU_KERNEL(stage_f16)

// out = norm(x) * weight + bias; out may be x
template <bool LAYER>
DEVICE void norm_stage(const float* x, float* out, const float* weight, const float* bias,
                       u8* inputs, u32 n, u32 stride, u32 n_group, float eps,
                       float (&warps)[2][NORM_THREADS / WARP]) {
  const u64 start = (u64)blockIdx.x * stride;
  const NormedRun<LAYER> run(x + start, weight, bias, n, eps, warps[0]);
  float* row = out + start;
  const auto make = [&](u32 i) { return row[i] = run(i); };
  stage_row<NORM_THREADS>(row, inputs, n, n_group, warps[1], make);
}

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_stage_f16(const float* x, float* out, const float* __restrict__ weight,
                       const float* __restrict__ bias, u8* inputs, u32 n, u32 stride,
                       u32 n_group, float eps) {
  __shared__ float warps[2][NORM_THREADS / WARP];
  norm_stage<false>(x, out, weight, bias, inputs, n, stride, n_group, eps, warps);
}
GPU_KERNEL(rms_norm_stage_f16)

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_stage_f16(const float* x, float* out, const float* __restrict__ weight,
                         const float* __restrict__ bias, u8* inputs, u32 n, u32 stride,
                         u32 n_group, float eps) {
  __shared__ float warps[2][NORM_THREADS / WARP];
  norm_stage<true>(x, out, weight, bias, inputs, n, stride, n_group, eps, warps);
}
GPU_KERNEL(layer_norm_stage_f16)

// gate = activation(gate) * up, up [n_cols, stride] or null
extern "C" __global__ void __launch_bounds__(GLU_THREADS)
    glu_stage_f16(float* gate, const float* __restrict__ up, u8* inputs, u32 n, u32 stride,
                  u32 n_group, u32 activation) {
  __shared__ float warp_far[GLU_THREADS / WARP];
  float* row = gate + (u64)blockIdx.x * stride;
  const float* factors = up ? up + (u64)blockIdx.x * stride : up;
  const auto make = [&](u32 i) { return row[i] = glu(row, factors, i, activation); };
  stage_row<GLU_THREADS>(row, inputs, n, n_group, warp_far, make);
}
GPU_KERNEL(glu_stage_f16)
