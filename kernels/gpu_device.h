// The device half of gpu.h: what CUDA's headers would bring, without them.
//
// Inline PTX is understood alike by every clang, nvcc and NVRTC; builtins are not, and a struct of
// four words that is read plainly becomes two loads. So loads, halves and special functions are
// single PTX instructions here. The simulator does not see this file: keep it small.
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

struct __align__(8) uint2 { u32 x, y; };
struct __align__(16) uint4 { u32 x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };

#define GPU_REGISTER(field, name)                                       \
  __declspec(property(get = get_##field)) u32 field;                    \
  static __device__ __forceinline__ u32 get_##field(void) {             \
    return __nvvm_read_ptx_sreg_##name();                               \
  }
struct GpuThreadIdx { GPU_REGISTER(x, tid_x) };
struct GpuBlockIdx { GPU_REGISTER(x, ctaid_x) GPU_REGISTER(y, ctaid_y) GPU_REGISTER(z, ctaid_z) };
struct GpuBlockDim { GPU_REGISTER(x, ntid_x) };
struct GpuGridDim { GPU_REGISTER(x, nctaid_x) GPU_REGISTER(y, nctaid_y) GPU_REGISTER(z, nctaid_z) };
extern const __device__ __attribute__((weak)) GpuThreadIdx threadIdx;
extern const __device__ __attribute__((weak)) GpuBlockIdx blockIdx;
extern const __device__ __attribute__((weak)) GpuBlockDim blockDim;
extern const __device__ __attribute__((weak)) GpuGridDim gridDim;

// The simulator's registration of a kernel; the device finds it in the PTX.
#define GPU_KERNEL(name)

static __device__ __forceinline__ float __shfl_xor_sync(u32 mask, float v, int lanes) {
  return __nvvm_shfl_sync_bfly_f32(mask, v, lanes, 0x1f);
}
static __device__ __forceinline__ float __shfl_sync(u32 mask, float v, int lane) {
  return __nvvm_shfl_sync_idx_f32(mask, v, lane, 0x1f);
}

// Loads of what no kernel writes while it runs, through the read-only cache.
static __device__ __forceinline__ uint4 load128(const void* p) {
  uint4 r;
  asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
static __device__ __forceinline__ uint2 load64(const void* p) {
  uint2 r;
  asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p));
  return r;
}
static __device__ __forceinline__ u32 load32(const void* p) {
  u32 r;
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(r) : "l"(p));
  return r;
}
static __device__ __forceinline__ u16 load16(const void* p) {
  u16 r;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(r) : "l"(p));
  return r;
}

// Eight or sixteen bytes of shared memory. The compiler keeps a vector in one piece, a struct it does not.
typedef u32 GpuVector __attribute__((vector_size(16)));
typedef float GpuFloats __attribute__((vector_size(8)));
static __device__ __forceinline__ float2 shared64(const void* p) {
  const GpuFloats v = *(const GpuFloats*)p;
  return {v[0], v[1]};
}
static __device__ __forceinline__ uint4 shared128(const void* p) {
  const GpuVector v = *(const GpuVector*)p;
  return {v[0], v[1], v[2], v[3]};
}
static __device__ __forceinline__ void set_shared128(void* p, uint4 v) {
  const GpuVector whole = {v.x, v.y, v.z, v.w};
  *(GpuVector*)p = whole;
}

static __device__ __forceinline__ float h2f(u16 h) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
  return r;
}
static __device__ __forceinline__ u16 f2h(float f) {
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(f));
  return r;
}
// Byte `i` of a word as a number; the assembler makes one instruction of it.
template <int I> static __device__ __forceinline__ float byte_to_float(u32 word) {
  float r;
  asm("{ .reg .u32 b; shr.u32 b, %1, %2; cvt.rn.f32.u8 %0, b; }" : "=f"(r) : "r"(word), "n"(8 * I));
  return r;
}
template <int I> static __device__ __forceinline__ float signed_byte_to_float(u32 word) {
  float r;
  asm("{ .reg .u32 b; shr.u32 b, %1, %2; cvt.rn.f32.s8 %0, b; }" : "=f"(r) : "r"(word), "n"(8 * I));
  return r;
}
// a * b + c on both halves, rounded once.
static __device__ __forceinline__ u32 h2fma(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
// Bytes of {b, a}, one for each hexadecimal digit of `select`, the lowest first.
static __device__ __forceinline__ u32 permute(u32 a, u32 b, u32 select) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(select));
  return r;
}
static __device__ __forceinline__ float fma32(float a, float b, float c) {
  float r;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
  return r;
}
static __device__ __forceinline__ float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
static __device__ __forceinline__ float rsqrt_fast(float x) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
static __device__ __forceinline__ float rcp_fast(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
// A product that no addition is drawn into.
static __device__ __forceinline__ float mul32(float a, float b) {
  float r;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
// The nearest integer, of two the even one.
static __device__ __forceinline__ int round_to_int(float x) {
  int r;
  asm("cvt.rni.s32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
#if __CUDA_ARCH__ >= 800
// d [16, 8] += a [16, 16] . b [16, 8], the matrices spread over the warp.
static __device__ __forceinline__ void mma_16_8_16(float (&d)[4], const u32 (&a)[4], u32 b0,
                                                   u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
