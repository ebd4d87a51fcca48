#!/usr/bin/env python3
"""Write tests/golden/grammar/cases.jsonl: the tokens that llama.cpp's grammars allow.

    golden_grammar.py --model models/default.gguf --grammars tests/golden/grammar \\
        --out tests/golden/grammar/cases.jsonl

The model lends only its vocabulary. A case is a random walk under one grammar:

    g       the grammar's file, without .gbnf
    tokens  those that were accepted, one after the other
    n       before each of them and at the end: how many text tokens are allowed
    h       a hash of their ids (32-bit FNV-1a over the ids as little-endian u32)
    end     whether the text may end there

Text tokens are those that show something to a reader, without bytes that no UTF-8 has: llama.cpp
takes 0xF5 and above for the beginning of a character. Others are left out: a control token is its
name to llama.cpp's grammars, which JetForge does not follow; grammars that name one (tokens.gbnf)
are walked with it all the same. No walk goes on from the bytes 0xE0, 0xED, 0xF0 and 0xF4 alone:
llama.cpp then allows overlong forms and surrogates, which are no UTF-8.

To compare other grammars or vocabularies, write the file elsewhere and let the test read it:
JETFORGE_GRAMMAR_CASES=cases.jsonl JETFORGE_GRAMMAR_DIR=grammars JETFORGE_GRAMMAR_MODEL=model.gguf

Needs: pip install llama-cpp-python
"""
import argparse, ctypes, json, os, random
import llama_cpp as L


def fnv(ids):
    h = 0x811C9DC5
    for i in ids:
        for b in i.to_bytes(4, "little"):
            h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return h


class Vocab:
    def __init__(self, path):
        params = L.llama_model_default_params()
        params.vocab_only = True
        self.model = L.llama_model_load_from_file(path.encode(), params)
        self.ptr = L.llama_model_get_vocab(self.model)
        self.n = L.llama_vocab_n_tokens(self.ptr)
        self.eog = [i for i in range(self.n) if L.llama_vocab_is_eog(self.ptr, i)]
        self.text = [b"" if i in self.eog else self.piece(i) for i in range(self.n)]

    def piece(self, token):
        buf = ctypes.create_string_buffer(65536)
        n = L.llama_token_to_piece(self.ptr, token, buf, 65536, 0, False)
        text = buf.raw[:max(n, 0)]
        return b"" if any(b >= 0xF5 for b in text) else text


def allowed(vocab, sampler, data):
    for i in range(vocab.n):
        data[i].id, data[i].logit, data[i].p = i, 0.0, 0.0
    array = L.llama_token_data_array(data, vocab.n, -1, False)
    L.llama_sampler_apply(sampler, ctypes.byref(array))
    return [i for i in range(vocab.n) if data[i].logit == 0.0]


def walk(vocab, name, grammar, rng, n_steps):
    sampler = L.llama_sampler_init_grammar(vocab.ptr, grammar, b"root")
    if not sampler:
        return print(f"{name}: refused")
    data = (L.llama_token_data * vocab.n)()
    case = dict(g=name, tokens=[], n=[], h=[], end=[])
    is_control = [not t for t in vocab.text]
    for step in range(n_steps + 1):
        ids = allowed(vocab, sampler, data)
        texts = [i for i in ids if not is_control[i]]
        case["n"].append(len(texts))
        case["h"].append(fnv(texts))
        case["end"].append(int(any(i in vocab.eog for i in ids)))
        # A control token only where nothing else can come: the grammar names it there.
        choice = [i for i in texts if vocab.text[i][-1] not in b"\xe0\xed\xf0\xf4"]
        choice = choice or [i for i in ids if is_control[i] and i not in vocab.eog]
        if not choice or step == n_steps:
            break
        weights = [1 / max(len(vocab.text[i]), 1) ** rng.choice([0, 2]) for i in choice]
        token = rng.choices(choice, weights)[0]
        if rng.random() < 0.4:  # what structure is made of
            ascii_ids = [i for i in choice if len(vocab.text[i]) == 1 and vocab.text[i] in b'"{}[](),.:;=-+*/ \n1a']
            token = rng.choice(ascii_ids or [token])
        case["tokens"].append(token)
        L.llama_sampler_accept(sampler, token)
    L.llama_sampler_free(sampler)
    return case


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--grammars", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--walks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    L.llama_backend_init()
    vocab = Vocab(args.model)
    names = sorted(f[:-5] for f in os.listdir(args.grammars) if f.endswith(".gbnf"))
    n = 0
    with open(args.out, "w") as out:
        for name in names:
            grammar = open(os.path.join(args.grammars, name + ".gbnf"), "rb").read()
            for seed in range(args.walks):
                case = walk(vocab, name, grammar, random.Random(f"{name} {seed}"), args.steps)
                if case:
                    out.write(json.dumps(case, separators=(",", ":")) + "\n")
                    n += 1
    print(f"{n} walks under {len(names)} grammars")


main()
