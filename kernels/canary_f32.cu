// A kernel with a barrier taken out: proof that the tests would see one.
//
//   out[i] = x[n - 1 - i] of a row of 128, turned round in shared memory without waiting
//
// It is compiled for the simulator only; nothing that ships has it.
#if defined(GPU_SIM)
#include "gpu.h"

extern "C" __global__ void __launch_bounds__(128) canary_f32(const float* x, float* out) {
  __shared__ float row[128];
  row[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = row[127 - threadIdx.x];
}
GPU_KERNEL(canary_f32)
#endif
