#!/usr/bin/env python3
"""Write tests/golden/sampler/infill.jsonl: the tokens that llama.cpp's infill sampler leaves.

    golden_infill.py --model models/default.gguf --out tests/golden/sampler/infill.jsonl

As golden_sampler.py, whose logits these are, with a chain of a bias, top-k, top-p, infill and the
draw, as llama.cpp's editor plugins ask for it. The model lends its vocabulary: which tokens end a
text, and which begin alike. Needs: pip install numpy llama-cpp-python
"""
import argparse
import ctypes
import json
import random

import llama_cpp as L

import golden_sampler as S

FAMILIES = [" re", " return", " r", " self", " s", "in", "int", "import", "i", "    ", "  ", "de", "def"]


def ids(vocab, text):
    raw, buf = text.encode(), (L.llama_token * 64)()
    return list(buf[:L.llama_tokenize(vocab, raw, len(raw), buf, 64, False, False)])


def picks(vocab, n, case):
    o = case["o"]
    chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
    bias = (L.llama_logit_bias * len(o["logit_bias"]))()
    for at, (token, amount) in enumerate(o["logit_bias"]):
        bias[at].token, bias[at].bias = token, amount
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_logit_bias(n, len(bias), bias))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_top_k(o["top_k"]))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_top_p(o["top_p"], 0))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_infill(vocab))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_dist(o["seed"]))
    out = []
    for step in range(16):
        row = S.logits(n, case["hash"], step, case["shape"])
        data = (L.llama_token_data * n)()
        for token in range(n):
            data[token].id, data[token].logit = token, float(row[token])
        array = L.llama_token_data_array(data, n, -1, False)
        L.llama_sampler_apply(chain, ctypes.byref(array))
        out.append(array.data[array.selected].id)
    L.llama_sampler_free(chain)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    params = L.llama_model_default_params()
    params.vocab_only = True
    model = L.llama_model_load_from_file(args.model.encode(), params)
    vocab = L.llama_model_get_vocab(model)
    n = L.llama_vocab_n_tokens(vocab)
    ends = [token for token in range(n) if L.llama_vocab_is_eog(vocab, token)]
    words = [found[0] for found in (ids(vocab, text) for text in FAMILIES) if len(found) == 1]
    random.seed(7)
    lines = []
    for at in range(48):
        bias = [[token, round(random.uniform(-2, 14), 2)] for token in random.sample(words, 5)]
        bias += [[token, round(random.uniform(-6, 12), 2)] for token in random.sample(ends, 1)]
        o = {"samplers": ["top_k", "top_p", "infill"], "seed": at, "top_k": random.choice([40, 8, 200]),
             "top_p": random.choice([0.99, 0.9, 0.5]), "logit_bias": bias}
        case = {"o": o, "n": n, "hash": random.getrandbits(32), "prompt": [0, 1],
                "shape": [random.choice([4, 9, 16]), random.choice([0, 1]), 0, 0, 0]}
        lines.append(json.dumps({**case, "picks": picks(vocab, n, case)}))
    with open(args.out, "w") as out:
        out.write("\n".join(lines) + "\n")


main()
