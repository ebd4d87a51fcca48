#!/usr/bin/env python3
"""Golden logits with LoRA adapters: what llama.cpp answers on tiny F32 models.

    golden_lora.py --out tests/golden/lora      # needs: pip install numpy gguf llama-cpp-python

No weights are committed. The base model is the F32 file of a case of golden_model.py; each adapter
is a recipe of the same kind (`CASE-ADAPTER.json`, built by tests/support/recipe.rs byte for byte).
`CASE.json` names adapters and, for each mixture of them (adapter number, scale), llama.cpp's logits
stand in `CASE.f32`, `[mixture][sampled token][n_vocab]`, in the order of `mixtures`.

The adapters' sizes are such that they change the logits by far more than the tolerance of the test.
"""
import argparse
import ctypes
import hashlib
import json
import os

import gguf
import llama_cpp as L
import numpy as np

import golden_model as G

F32 = gguf.GGMLQuantizationType.F32
CASES = {   # base: ({adapter: (alpha, rank, changed tensors)}, mixtures)
    "llama": ({
        "attn": (8.0, 4, [f"blk.{i}.{t}.weight" for i in (0, 1)
                          for t in ("attn_q", "attn_v", "ffn_down")]),
        "all": (0.0, 3, ["token_embd.weight", "output.weight"] +
                [f"blk.{i}.{t}.weight" for i in (0, 1)
                 for t in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                           "ffn_down")]),
    }, [[], [[0, 1.0]], [[1, 0.5]], [[0, 0.75], [1, -0.25]]]),
    "phi2": ({
        "fused": (16.0, 5, [f"blk.{i}.{t}.weight" for i in (0, 1)
                            for t in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")]),
    }, [[[0, 1.0]]]),
}


def adapter(case, title, alpha, rank, names):
    """(keys, rows) as golden_model.recipe gives them for a model."""
    shapes = {name: shape for name, shape, *_ in G.recipe(case)[1]}
    keys = [["general.architecture", "str", case], ["general.type", "str", "adapter"],
            ["adapter.type", "str", "lora"], ["adapter.lora.alpha", "f32", alpha]]
    rows = []
    for name in names:
        n_in, n_out = shapes[name]
        a, b = ([rank, n_out], [rank, n_in]) if name == "token_embd.weight" else (
            [n_in, rank], [rank, n_out])
        for half, shape in (("lora_a", a), ("lora_b", b)):
            # The name seeds the numbers; two adapters for one tensor must differ in them.
            rows.append([f"{name}.{half}", shape, 0.0, 0.0625 if title == "attn" else 0.09375, True])
    return keys, rows


def logits(base, adapters, mixture, tokens):
    model, ctx = G.open_model(base, False)
    loaded = [L.llama_adapter_lora_init(model, path.encode()) for path in adapters]
    assert all(loaded), adapters
    n = len(mixture)
    if n:
        chosen = (L.llama_adapter_lora_p_ctypes * n)(*[loaded[i] for i, _ in mixture])
        scales = (ctypes.c_float * n)(*[s for _, s in mixture])
        assert L.llama_set_adapters_lora(ctx, chosen, n, scales) == 0
    n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    G.decode(ctx, tokens, True)
    rows = [np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, i), (n_vocab,)).copy()
            for i in G.SAMPLED]
    L.llama_free(ctx)
    L.llama_model_free(model)
    return np.stack(rows)


def write_recipe(path, keys, rows, sha256):
    text = json.dumps({"files": [{"type": "F32", "sha256": sha256}]}, indent=0)[:-2]
    for title, items in (("metadata", keys), ("tensors", rows)):
        lines = ",\n".join(json.dumps(x, ensure_ascii=False) for x in items)
        text += f',\n"{title}": [\n{lines}\n]'
    with open(path, "w") as f:
        f.write(text + "\n}\n")


def run_case(case, out):
    adapters, mixtures = CASES[case]
    base = os.path.join(out, f"{case}-base.gguf")
    keys, rows = G.recipe(case)
    G.build(base, keys, rows, F32)
    n_vocab = next(v for k, _, v in keys if k.endswith(".vocab_size"))
    tokens, paths = G.tokens_of(case, n_vocab), []
    for title, spec in adapters.items():
        keys, rows = adapter(case, title, *spec)
        paths.append(os.path.join(out, f"{case}-{title}.gguf"))
        G.build(paths[-1], keys, rows, F32)
        with open(paths[-1], "rb") as f:
            sha256 = hashlib.sha256(f.read()).hexdigest()
        write_recipe(os.path.join(out, f"{case}-{title}.json"), keys, rows, sha256)
    plain = logits(base, paths, [], tokens)
    kept = []
    for mixture in mixtures:
        kept.append(logits(base, paths, mixture, tokens))
        print(f"{case:8} {mixture}: changes a logit by up to {np.abs(kept[-1] - plain).max():.3f}")
    doc = {"made_with": f"golden_lora.py, llama-cpp-python {L.__version__}",
           "adapters": list(adapters), "mixtures": mixtures, "tokens": tokens,
           "sampled": list(G.SAMPLED)}
    with open(os.path.join(out, case + ".json"), "w") as f:
        f.write(json.dumps(doc) + "\n")
    np.stack(kept).astype("<f4").tofile(os.path.join(out, case + ".f32"))
    for path in [base, *paths]:
        os.remove(path)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    L.llama_log_set(G.quiet, ctypes.c_void_p())
    L.llama_backend_init()
    for case in CASES:
        run_case(case, a.out)


if __name__ == "__main__":
    main()
