#!/usr/bin/env python3
"""Write tests/golden/quantize: how well llama.cpp's quantizers do, and which types it chooses.

    pip install numpy gguf==0.19.0 llama-cpp-python==0.3.36
    python3 tests/tools/golden_quantize.py tests/golden/quantize

types.json: for each recipe, tensors of the default model by the type that llama.cpp gives them.

errors.json: rows come from splitmix64, so that a test makes the same ones. Each figure is the sum of
importance * (weight - dequantised weight)^2 over a matrix, divided by that of all-zero weights; the
importance is 1 where none is given.
"""
import ctypes
import json
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader
from gguf.quants import dequantize

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
N_ROWS, N_COLS = 24, 1024
# llama.cpp's numbers of recipes.
RECIPES = {"Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_0": 2, "Q4_1": 3, "Q4_K_S": 14,
           "Q4_K_M": 15, "Q5_0": 8, "Q5_1": 9, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}


def uniforms(seed, n):
    """n numbers in [0, 1) from splitmix64."""
    out, state, mask = np.empty(n), seed, (1 << 64) - 1
    for i in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        out[i] = ((z ^ z >> 31) >> 11) / 2**53
    return out


def weights(kind, seed):
    """Sums of four uniforms are near enough to normal; heavy tails are those divided by a uniform."""
    n = N_ROWS * N_COLS
    u = uniforms(seed, 5 * n).reshape(n, 5)
    x = (u[:, :4].sum(1) - 2) * 0.05
    if kind == "heavy":
        x = x / (0.1 + u[:, 4])
    return x.astype(np.float32).reshape(N_ROWS, N_COLS)


def importance(seed):
    """A few columns count far more than the rest."""
    u = uniforms(seed, N_COLS)
    return (0.05 + 1 / (0.02 + u) ** 1.5).astype(np.float32)


def types(source):
    """For each recipe, the names of the tensors of each type in what llama.cpp makes of `source`."""
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.allow_requantize = True
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, number in RECIPES.items():
            params.ftype = number
            out = f"{folder}/{name}.gguf"
            failed = llama_cpp.llama_model_quantize(str(source).encode(), out.encode(),
                                                    ctypes.byref(params))
            assert not failed, name
            by_type = found.setdefault(name, {})
            for tensor in sorted(GGUFReader(out).tensors, key=lambda tensor: tensor.name):
                if len(tensor.shape) > 1:
                    by_type.setdefault(tensor.tensor_type.name, []).append(tensor.name)
    return found


def main():
    lib = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))))
    quantize = lib.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    ptr, i64 = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, ptr, ptr, i64, i64, i64, ptr]
    figures = []
    for kind, seed in [("normal", 1), ("heavy", 2)]:
        x = weights(kind, seed)
        for weighted in [False, True]:
            q = importance(3) if weighted else np.ones(N_COLS, dtype=np.float32)
            for name in TYPES:
                out = np.zeros(x.nbytes, dtype=np.uint8)
                row = q.ctypes.data if weighted else None
                n = quantize(T[name].value, x.ctypes.data, out.ctypes.data, 0, N_ROWS, N_COLS, row)
                y = dequantize(out[:n].reshape(N_ROWS, -1), T[name])
                miss = (q * (x - y).astype(np.float64) ** 2).sum()
                error = float(miss / (q * x.astype(np.float64) ** 2).sum())
                figures.append({"rows": kind, "seed": seed, "importance": weighted,
                                "type": name, "error": float(f"{error:.6g}")})
    rows = ",\n  ".join(json.dumps(f) for f in figures)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "errors.json").write_text(f'[\n  {rows}\n]\n')
    root = Path(__file__).resolve().parents[2]
    (out / "types.json").write_text(json.dumps(types(root / "models/default.gguf"), indent=1) + "\n")


main()
