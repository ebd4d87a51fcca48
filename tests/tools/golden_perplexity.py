#!/usr/bin/env python3
"""Write tests/golden/perplexity/: llama.cpp's perplexity of the default model on a small text.

    golden_perplexity.py --model models/default.gguf --tasks models/default/tasks.jsonl \\
        --out tests/golden/perplexity

The text is programs and explanations of the model's corpus, every eighth task. The figure is what
llama.cpp's tool of that name computes: windows of n_ctx tokens one after the other, the first token
of each replaced by BOS where the model wants one, and only the second half of a window scored.

Needs: pip install numpy llama-cpp-python
"""
import argparse
import ctypes
import json
import math
import os

import llama_cpp as L
import numpy as np

N_CTX, TEXT_BYTES = (128, 512), 14_000


@L.llama_log_callback
def quiet(_level, _text, _user):
    pass


def text_of(tasks):
    parts = []
    with open(tasks) as f:
        for line in list(f)[::8]:
            task = json.loads(line)
            parts.append(f"# {task['prompts'][0]}\n{task['code']}# {task['explanation']}\n\n\n")
    text = "".join(parts)
    return text[:text.rindex("\n\n\n", 0, TEXT_BYTES) + 3]


def tokenize(vocab, text):
    raw = text.encode()
    buf = (L.llama_token * len(raw))()
    return list(buf[:L.llama_tokenize(vocab, raw, len(raw), buf, len(raw), True, False)])


def perplexity(model, tokens, n_ctx):
    vocab = L.llama_model_get_vocab(model)
    n_vocab = L.llama_vocab_n_tokens(vocab)
    cp = L.llama_context_default_params()
    cp.n_ctx = cp.n_batch = n_ctx
    ctx = L.llama_init_from_model(model, cp)
    nll, nll2, count, first = 0.0, 0.0, 0, n_ctx // 2
    for start in range(0, len(tokens) // n_ctx * n_ctx, n_ctx):
        window = tokens[start:start + n_ctx]
        if L.llama_vocab_get_add_bos(vocab):
            window = [L.llama_vocab_bos(vocab), *window[1:]]
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
        batch = L.llama_batch_init(n_ctx, 0, 1)
        batch.n_tokens = n_ctx
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= first
        assert L.llama_decode(ctx, batch) == 0
        L.llama_batch_free(batch)
        for i in range(first, n_ctx - 1):
            row = np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, i), (n_vocab,)).astype(np.float64)
            x = np.logaddexp.reduce(row) - row[window[i + 1]]
            nll, nll2, count = nll + x, nll2 + x * x, count + 1
    L.llama_free(ctx)
    nll, nll2 = nll / count, nll2 / count
    value = math.exp(nll)
    return {"n_ctx": n_ctx, "n_tokens": count, "perplexity": value,
            "stderr": value * math.sqrt((nll2 - nll * nll) / (count - 1))}


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="models/default.gguf")
    p.add_argument("--tasks", default="models/default/tasks.jsonl")
    p.add_argument("--out", required=True)
    a = p.parse_args()
    L.llama_log_set(quiet, ctypes.c_void_p())
    L.llama_backend_init()
    text = text_of(a.tasks)
    with open(os.path.join(a.out, "text.txt"), "w") as f:
        f.write(text)
    model = L.llama_model_load_from_file(a.model.encode(), L.llama_model_default_params())
    tokens = tokenize(L.llama_model_get_vocab(model), text)
    doc = {"made_with": f"golden_perplexity.py, llama-cpp-python {L.__version__}",
           "windows": [perplexity(model, tokens, n) for n in N_CTX]}
    with open(os.path.join(a.out, "default.json"), "w") as f:
        json.dump(doc, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
