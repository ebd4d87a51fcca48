#!/usr/bin/env python3
"""Compare our quantised files with llama.cpp's of the same input: sizes and perplexities.

    pip install gguf==0.19.0 llama-cpp-python==0.3.36
    python3 tests/tools/compare_quantize.py JETFORGE MODEL-f16.gguf TEXT [IMATRIX.gguf]

Both files of a recipe are measured by the same program, ours, on the same text.
"""
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader
from llama_cpp.llama_cpp import llama_model_imatrix_data as Entry

RECIPES = {"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q4_K_S": 14, "Q4_0": 2, "Q3_K_M": 12,
           "Q3_K_S": 11}


def imatrix(path):
    """Entries as llama_model_quantize takes them, and what has to stay alive."""
    tensors = {tensor.name: tensor.data.reshape(-1) for tensor in GGUFReader(path).tensors}
    names = [name[:-8] for name in tensors if name.endswith(".in_sum2")]
    rows = [np.ascontiguousarray(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"][0],
                                 dtype=np.float32) for name in names]
    entries = (Entry * (len(names) + 1))()
    for entry, name, row in zip(entries, names, rows):
        entry.name, entry.size = name.encode(), row.size
        entry.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries, rows


def perplexity(program, model, text):
    answer = subprocess.run([program, "perplexity", text, "--json", "-m", model], check=True,
                            capture_output=True)
    return json.loads(answer.stdout)["perplexity"]


def main():
    program, source, text = sys.argv[1:4]
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    params = llama_cpp.llama_model_quantize_default_params()
    options, kept = [], None
    if len(sys.argv) > 4:
        kept = imatrix(sys.argv[4])
        params.imatrix = kept[0]
        options = ["--imatrix", sys.argv[4]]
    base = perplexity(program, source, text)
    print(f"| recipe | bytes, llama.cpp | bytes, ours | perplexity, llama.cpp | ours | ratio |")
    print(f"|---|---|---|---|---|---|\n| source | | | | {base:.4f} | |")
    with tempfile.TemporaryDirectory() as folder:
        for name, number in RECIPES.items():
            params.ftype = number
            theirs, ours = f"{folder}/theirs.gguf", f"{folder}/ours.gguf"
            failed = llama_cpp.llama_model_quantize(source.encode(), theirs.encode(),
                                                    ctypes.byref(params))
            assert not failed, name
            subprocess.run([program, "quantize", source, ours, name, "--force", *options], check=True,
                           capture_output=True)
            a, b = perplexity(program, theirs, text), perplexity(program, ours, text)
            sizes = [Path(path).stat().st_size for path in (theirs, ours)]
            print(f"| {name} | {sizes[0]} | {sizes[1]} | {a:.4f} | {b:.4f} | {b / a:.4f} |")


main()
