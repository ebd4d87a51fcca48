#!/usr/bin/env python3
"""Golden logits: what llama.cpp answers on a tiny model of every architecture and tensor type.

    golden_model.py --out tests/golden/models            # needs: pip install numpy gguf llama-cpp-python
    golden_model.py --out /tmp/x --case qwen2 --keep     # one case, its GGUF files kept in /tmp/x

No weights are committed. A case is a recipe (metadata and tensor list, in `CASE.json`) from which
tests/support/recipe.rs builds the same GGUF file, byte for byte (its SHA-256 is in the recipe), and
`CASE.f32` holds llama.cpp's logits on it.

The bytes of a tensor follow from its name and type alone:

    seed      = the first 8 bytes of SHA-256(name), little-endian
    word(i)   = splitmix64's output number i (from 0): mix(seed + (i + 1) * 0x9E3779B97F4A7C15)
    F32       element i = center + amp * u, u = (word(i) >> 40) / 2^23 - 1, all in f32
    F16, BF16 the same, rounded to nearest even
    blocks    byte j = byte j % 8 of word(j / 8), little-endian; then in each block the f16 scale
              gets the exponent that BLOCKS names, so that a weight is about 0.05 in size. It
              keeps its mantissa and sign; in a type with a minimum it keeps the 9 low bits of
              the mantissa alone, and the bits of the minimum are those of the scale plus a
              constant, which makes the weights' mean about zero

A file is: header, keys and tensors in the recipe's order, every tensor padded to 32 bytes.
Tensors that are not matrices (center and amp in the recipe say which) are F32 in every file.

llama.cpp runs with F32 KV, without flash attention and without repacked weights. `noise` is how far
its own logits are from those of the same weights dequantised to F32, because it quantises
activations; `noise_kl` is the same as a KL divergence.
"""
import argparse
import ctypes
import hashlib
import json
import os

import gguf
import llama_cpp as L
import numpy as np
from gguf import GGMLQuantizationType as T

import mkmodel

CASES = {   # name: (preset, changes, every tensor type?)
    "llama": ("tinyllama-1.1b", {}, True),
    "llama-linear": ("deepseek-coder-1.3b", {"n_vocab": 320}, False),
    "llama-yarn": ("tinyllama-1.1b", {"rope": ("yarn", 4.0, 8)}, False),
    "llama-llama3": ("tinyllama-1.1b", {"rope": ("llama3", 8.0, None)}, False),
    "qwen2": ("qwen2.5-coder-0.5b", {"n_vocab": 320}, True),
    "qwen2-yarn": ("qwen2.5-coder-7b", {"n_vocab": 320, "rope": ("yarn", 4.0, 8)}, False),
    "qwen3": ("qwen3-0.6b", {"n_vocab": 320}, True),
    "phi2": ("phi-2", {"n_vocab": 320}, True),
    "stablelm": ("stablelm-2-1.6b", {"n_vocab": 320}, True),
    "stablelm-parallel": ("stablelm-2-12b", {"n_vocab": 320}, False),
    "starcoder2": ("starcoder2-3b", {"n_vocab": 320}, True),
    "starcoder2-untied": ("starcoder2-7b", {"n_vocab": 320}, False),
    "gemma3": ("gemma-3-1b", {"n_ff": 256}, True),
    "bert": ("bge-small-en", {}, True),
    "bert-mean": ("bge-small-en", {"pooling": "mean"}, False),
    "bert-rank": ("ms-marco-minilm-l6", {}, False),
    "bert-rank-direct": ("ms-marco-minilm-l6", {"head": "direct"}, False),
}
TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K,
         T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS, T.IQ3_XXS, T.IQ3_S]
# scale offset, exponent field of the scale; minimum offset, what is added to the scale's bits
BLOCKS = {T.Q4_0: (0, 8), T.Q4_1: (0, 8, 2, 0x8C00), T.Q5_0: (0, 7), T.Q5_1: (0, 7, 2, 0x9000),
          T.Q8_0: (0, 4), T.Q2_K: (80, 7, 82, 0x0200), T.Q3_K: (108, 4), T.Q4_K: (0, 2, 2, 0x0C00),
          T.Q5_K: (0, 1, 2, 0x1000), T.Q6_K: (208, 0), T.IQ4_NL: (0, 4), T.IQ4_XS: (0, 0),
          T.IQ3_XXS: (0, 3), T.IQ3_S: (0, 3)}
CENTER_AMP = {"norm": (1.0, 0.125), "rope_freqs": (4.5, 3.5)}       # others: 0, 1/8
N_TOKENS, SAMPLED = 24, (0, 11, 23)
# What an encoder embeds; a reranker scores each against the first.
TEXTS = ["quick sort a list", "def main(): print(1)", "the sum of two numbers, then return"]


# ---------------------------------------------------------------- the formula
def words(name, n):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def floats(name, n, center, amp):
    u = (words(name, n) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return np.float32(center) + np.float32(amp) * u


def blocks(name, n, t):
    per, size = gguf.GGML_QUANT_SIZES[t]
    n_bytes = n // per * size
    b = words(name, -(-n_bytes // 8)).astype("<u8").view(np.uint8)[:n_bytes].reshape(-1, size)
    b = b.copy()
    at, exponent, *minimum = BLOCKS[t]
    d = b[:, at:at + 2].copy().view("<u2")
    d = (d & (0x01FF if minimum else 0x83FF)) | (exponent << 10)
    b[:, at:at + 2] = d.astype("<u2").view(np.uint8)
    if minimum:
        at_min, more = minimum
        b[:, at_min:at_min + 2] = (d + more).astype("<u2").view(np.uint8)
    return b.reshape(-1)


def data(name, shape, center, amp, t):
    n = int(np.prod(shape))
    if t in BLOCKS:
        return blocks(name, n, t)
    return gguf.quants.quantize(floats(name, n, center, amp), t).view(np.uint8)


def recipe(case):
    preset, changes, _ = CASES[case]
    n_vocab = 384                       # the least that the SPM and WordPiece vocabularies need
    m = mkmodel.model(preset, tiny=True, **{"n_vocab": n_vocab, "context": 64, **changes})
    rows = []
    for name, shape, kind in mkmodel.tensors(m):
        center, amp = CENTER_AMP.get(kind, (0.0, 0.125))
        rows.append([name, [int(x) for x in shape[::-1]], center, amp, kind not in mkmodel.PLAIN])
    return [[k, t, v] for k, t, v in mkmodel.metadata(m)], rows


def build(path, keys, rows, t, dequantised=False):
    w = mkmodel.writer(path, keys)
    for name, shape, center, amp, is_matrix in rows:
        ty = t if is_matrix else T.F32
        raw = data(name, shape, center, amp, ty)
        if dequantised:
            n_rows, row_bytes = -1, shape[0] // gguf.GGML_QUANT_SIZES[ty][0]
            row_bytes *= gguf.GGML_QUANT_SIZES[ty][1]
            raw = gguf.quants.dequantize(raw.reshape(n_rows, row_bytes), ty)
            w.add_tensor(name, raw.reshape(shape[::-1]).astype(np.float32))
        else:
            per, size = gguf.GGML_QUANT_SIZES[ty]
            w.add_tensor(name, raw.reshape(*shape[:0:-1], shape[0] // per * size), raw_dtype=ty)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# ---------------------------------------------------------------- llama.cpp
def tokens_of(case, n_vocab):
    return [int(x % np.uint64(n_vocab)) for x in words(case + " tokens", N_TOKENS)]


@L.llama_log_callback
def quiet(_level, _text, _user):
    pass


def open_model(path, embedding):
    mp = L.llama_model_default_params()
    mp.use_extra_bufts = False          # the plain kernels, not a repacked layout
    model = L.llama_model_load_from_file(path.encode(), mp)
    assert model, path
    cp = L.llama_context_default_params()
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 64
    cp.n_threads = cp.n_threads_batch = 1
    cp.type_k = cp.type_v = int(T.F32)
    cp.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_DISABLED
    cp.embeddings = embedding
    ctx = L.llama_init_from_model(model, cp)
    assert ctx, path
    return model, ctx


def decode(ctx, tokens, all_logits):
    batch = L.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, t in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = t, i, 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = all_logits
    assert L.llama_decode(ctx, batch) == 0
    L.llama_batch_free(batch)


def logits(path, tokens):
    """[n_tokens, n_vocab], teacher-forced."""
    model, ctx = open_model(path, False)
    n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    decode(ctx, tokens, True)
    out = np.stack([np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, i), (n_vocab,)).copy()
                    for i in range(len(tokens))])
    L.llama_free(ctx)
    L.llama_model_free(model)
    return out


def tokenize(vocab, text, special):
    raw, buf = text.encode(), (L.llama_token * 64)()
    return list(buf[:L.llama_tokenize(vocab, raw, len(raw), buf, 64, special, False)])


def pair(vocab, query, document):
    """Tokens for a reranker as llama.cpp's server puts them together (format_prompt_rerank)."""
    eos = L.llama_vocab_eos(vocab)
    end = [L.llama_vocab_sep(vocab) if eos < 0 else eos] * L.llama_vocab_get_add_eos(vocab)
    return ([L.llama_vocab_bos(vocab)] * L.llama_vocab_get_add_bos(vocab)
            + tokenize(vocab, query, False) + end
            + [L.llama_vocab_sep(vocab)] * L.llama_vocab_get_add_sep(vocab)
            + tokenize(vocab, document, False) + end)


def embeddings(path):
    """([n_text, n_embd] pooled, not normalised, or [n_text, 1] scores; tokens of each text)."""
    model, ctx = open_model(path, True)
    vocab, n_out, out, ids = L.llama_model_get_vocab(model), L.llama_model_n_embd(model), [], []
    is_reranker = L.llama_pooling_type(ctx) == L.LLAMA_POOLING_TYPE_RANK
    if is_reranker:
        n_out = 1
    for text in TEXTS:
        ids.append(pair(vocab, TEXTS[0], text) if is_reranker else tokenize(vocab, text, True))
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
        decode(ctx, ids[-1], True)
        out.append(np.ctypeslib.as_array(L.llama_get_embeddings_seq(ctx, 0), (n_out,)).copy())
    L.llama_free(ctx)
    L.llama_model_free(model)
    return np.stack(out), ids


def kl(a, b):
    """KL divergence of softmax(b) from softmax(a), a row each."""
    a, b = (x.astype(np.float64) for x in (a, b))
    a, b = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (a, b))
    return (np.exp(a) * (a - b)).sum(axis=1)


def run_case(case, folder, keep):
    keys, rows = recipe(case)
    is_encoder = keys[0][2] == "bert"
    n_vocab = next(v for k, _, v in keys if k.endswith(".vocab_size"))
    tokens = tokens_of(case, n_vocab)
    files, kept = [], []
    for t in TYPES if CASES[case][2] else [T.F32]:
        path, exact_path = (os.path.join(folder, f"{case}-{t.name}{x}.gguf") for x in ("", "-exact"))
        build(path, keys, rows, t)
        build(exact_path, keys, rows, t, dequantised=True)
        with open(path, "rb") as f:
            entry = {"type": t.name, "sha256": hashlib.sha256(f.read()).hexdigest()}
        if is_encoder:
            (out, ids), (exact, _) = embeddings(path), embeddings(exact_path)
            kept.append(out)
        else:
            out, exact = logits(path, tokens), logits(exact_path, tokens)
            top = np.sort(out, axis=1)
            entry["argmax"] = [int(x) for x in out.argmax(axis=1)]
            entry["margin"] = [round(float(x), 4) for x in top[:, -1] - top[:, -2]]
            entry["noise_kl"] = float(f"{kl(out, exact).mean():.3g}")
            kept.append(out[list(SAMPLED)])
        assert np.isfinite(out).all(), path
        entry["noise"] = float(f"{np.abs(out - exact).max():.3g}")
        print(f"{case:18} {t.name:7} std {out.std():.3f}  noise {entry['noise']} "
              f"kl {entry.get('noise_kl', '-')}", flush=True)
        files.append(entry)
        os.remove(exact_path)
        if not keep:
            os.remove(path)
    doc = {"made_with": f"golden_model.py, llama-cpp-python {L.__version__}", "files": files}
    doc |= ({"texts": TEXTS, "tokens": ids} if is_encoder
            else {"tokens": tokens, "sampled": list(SAMPLED)})
    text = json.dumps(doc, ensure_ascii=False, indent=0)[:-2]
    for title, items in (("metadata", keys), ("tensors", rows)):
        lines = ",\n".join(json.dumps(x, ensure_ascii=False) for x in items)
        text += f',\n"{title}": [\n{lines}\n]'
    with open(os.path.join(folder, case + ".json"), "w") as f:
        f.write(text + "\n}\n")
    np.concatenate([x.reshape(-1) for x in kept]).astype("<f4").tofile(
        os.path.join(folder, case + ".f32"))


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    p.add_argument("--case", choices=CASES, action="append")
    p.add_argument("--keep", action="store_true", help="keep the GGUF files")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    L.llama_log_set(quiet, ctypes.c_void_p())
    L.llama_backend_init()
    for case in a.case or CASES:
        run_case(case, a.out, a.keep)


if __name__ == "__main__":
    main()
