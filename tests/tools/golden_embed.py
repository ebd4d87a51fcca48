#!/usr/bin/env python3
"""Write tests/golden/embeddings.json: llama.cpp's embeddings of a text under each pooling.

    golden_embed.py --out tests/golden/embeddings.json

The models are F32 ones of golden_model.py, causal ones among them, whose embeddings are the rows
before the output matrix. Vectors are not normalised. Needs: pip install numpy gguf llama-cpp-python
"""
import argparse
import ctypes
import json
import os
import tempfile

import llama_cpp as L
import numpy as np
from gguf import GGMLQuantizationType as T

import golden_model as M

CASES = ["llama", "qwen2", "phi2", "gemma3", "bert"]
POOLINGS = {"mean": L.LLAMA_POOLING_TYPE_MEAN, "cls": L.LLAMA_POOLING_TYPE_CLS,
            "last": L.LLAMA_POOLING_TYPE_LAST}
TEXT = "the sum of two numbers, then return"


def embedding(model, pooling):
    cp = L.llama_context_default_params()
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 64
    cp.n_threads = cp.n_threads_batch = 1
    cp.type_k = cp.type_v = int(T.F32)
    cp.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_DISABLED
    cp.embeddings, cp.pooling_type = True, pooling
    ctx = L.llama_init_from_model(model, cp)
    M.decode(ctx, M.tokenize(L.llama_model_get_vocab(model), TEXT, True), True)
    n_embd = L.llama_model_n_embd(model)
    out = np.ctypeslib.as_array(L.llama_get_embeddings_seq(ctx, 0), (n_embd,)).copy()
    L.llama_free(ctx)
    return [float(f"{x:.6g}") for x in out]


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    a = p.parse_args()
    L.llama_log_set(M.quiet, ctypes.c_void_p())
    L.llama_backend_init()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            keys, tensors = M.recipe(case)
            path = os.path.join(folder, case + ".gguf")
            M.build(path, keys, tensors, T.F32)
            mp = L.llama_model_default_params()
            mp.use_extra_bufts = False
            model = L.llama_model_load_from_file(path.encode(), mp)
            for name, pooling in POOLINGS.items():
                rows.append({"case": case, "pooling": name, "values": embedding(model, pooling)})
            L.llama_model_free(model)
    with open(a.out, "w") as f:
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        f.write(f'{{"text":{json.dumps(TEXT)},"embeddings":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
