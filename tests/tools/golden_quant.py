#!/usr/bin/env python3
"""Write tests/golden/quant: what gguf-py makes of chosen blocks and weights.

    pip install numpy gguf==0.19.0
    python3 tests/tools/golden_quant.py tests/golden/quant

TYPE.dequantize.bin   the bytes of the blocks, then their weights as f32
TYPE.quantize.bin     f32 weights, then the bytes of their blocks (types that gguf-py can write)

Little-endian, without a header: a reader knows the block's sizes, so the length gives the number
of blocks. The blocks are random codes under chosen f16 scales: tiny, huge, negative, zero. Not in
here: infinite and NaN scales, and blocks so small that 1 / scale overflows, where numpy's casts
are undefined.
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

FLOATS = ["F32", "F16", "BF16"]
QUANTIZABLE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
# Where each block keeps its f16 values.
F16_AT = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
    "IQ3_XXS": [0], "IQ3_S": [0],
}
# Largest, smallest normal and smallest subnormal f16, both signs, zeros and ordinary values.
SCALES = [0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0400, 0x0001, 0x83FF, 0x2E66, 0xA8F6, 0x1C21]


def blocks(name, rng):
    """Blocks: all codes zero, all ones, then random; an ordinary and an extreme scale each."""
    _, n_bytes = GGML_QUANT_SIZES[T[name]]
    n = 6 if n_bytes > 40 else 12
    out = rng.integers(0, 256, (n, n_bytes), dtype=np.uint8)
    out[0] = 0
    out[1] = 0xFF
    for at in F16_AT[name]:
        scales = rng.permutation(np.array(SCALES + SCALES, dtype="<u2"))[:n]
        scales[0], scales[1] = 0x2E66, 0x7BFF
        out[:, at:at + 2] = scales.reshape(n, 1).view(np.uint8)
    return out


def floats(name, rng):
    """Random bit patterns of a float type without NaN, the special values first."""
    bits = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}[name]
    inf = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[name]
    sign = {"F32": 0x80000000}.get(name, 0x8000)
    magnitude = np.concatenate([[0, 1, inf // 2, inf - 1, inf], rng.integers(0, inf, 59)])
    return np.concatenate([magnitude, magnitude | sign]).astype(bits)


def weights(rng):
    """Rows of 32 finite weights whose blocks have scales that are normal numbers."""
    x = rng.normal(0, 1, (20, 32)).astype(np.float32)
    x *= np.float32(10) ** rng.integers(-6, 4, (20, 1)).astype(np.float32)
    x[0] = 0
    x[1] = -0.75
    x[2] = np.arange(32, dtype=np.float32) - 16
    x[3] = (np.arange(32, dtype=np.float32) - 8) / 2
    x[4, 1:] = 0
    x[5] = np.abs(x[5])
    x[6] = -np.abs(x[6])
    x[7, 9] = 1e4
    x[8] = np.where(np.arange(32) % 2, 3, -3)
    x[9] *= np.float32(1e-20)
    return x


def float_weights(rng):
    """Floats over the whole range, near ties of F16 and BF16, and what overflows them."""
    bits = rng.integers(0, 0x7F800000, 64).astype("<u4")
    near = rng.normal(0, 1, 64).astype("<f4").view("<u4")
    near[:16] &= 0xFFFFE000
    near[16:32] = near[16:32] & 0xFFFFE000 | 0x1000
    near[32:48] = near[32:48] & 0xFFFF0000 | 0x8000
    special = np.array([0, -0.0, 65504, 65519.99, 65520, -1e6, 3.4e38, 5.9e-8, 2.9e-8, np.inf])
    return np.concatenate([bits.view("<f4"), near.view("<f4"), special.astype("<f4")])


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in FLOATS + list(F16_AT):
        rng = np.random.default_rng(T[name].value)
        src = floats(name, rng).view(np.uint8) if name in FLOATS else blocks(name, rng)
        dst = dequantize(src, T[name]).astype("<f4")
        path = out / f"{name.lower()}.dequantize.bin"
        path.write_bytes(src.tobytes() + dst.tobytes())
    for name in FLOATS[1:] + QUANTIZABLE:
        rng = np.random.default_rng(100 + T[name].value)
        src = weights(rng) if name in QUANTIZABLE else float_weights(rng).reshape(1, -1)
        dst = np.ascontiguousarray(quantize(src, T[name]))
        path = out / f"{name.lower()}.quantize.bin"
        path.write_bytes(src.astype("<f4").tobytes() + dst.tobytes())


main()
