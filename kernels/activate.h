// Activations, and what a feed-forward network makes of two products.
#pragma once
#include "gpu.h"

enum Activation { SILU = 0, GELU = 1, TANH = 2 };

DEVICE float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }

// 1 - 2 / (exp(2 x) + 1): at both ends exact, where the exponential is 0 or infinite.
DEVICE float tanh_fast(float x) { return 1.f - 2.f * rcp_fast(exp_fast(2.f * x) + 1.f); }

DEVICE float activate(float x, u32 activation) {
  if (activation == SILU) return x * rcp_fast(1.f + exp_fast(-x));
  if (activation == TANH) return tanh_fast(x);
  return 0.5f * x * (1.f + tanh_fast(0.79788456f * fma32(0.044715f * x * x, x, x)));
}

// activation(gate) * up, or without it where `up` is null.
DEVICE float glu(const float* gate, const float* up, u64 at, u32 activation) {
  const float factor = up ? up[at] : 1.f;
  return mul32(activate(gate[at], activation), factor);
}
