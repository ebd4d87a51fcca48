#!/usr/bin/env python3
"""Write tests/golden/sampler/: the tokens that llama.cpp's sampling chain picks.

    golden_sampler.py --model models/default.gguf --out tests/golden/sampler

The model lends only its vocabulary, in which DRY looks for sequence breakers. Logits are not
stored: both sides make them from a 32-bit hash with exact f32 steps (`logits` here and in
tests/sampler.rs). A case is one line of cases.jsonl:

    o       options that are not the default, by SamplerOptions' names
    forbid  tokens with a bias of -inf (JSON has no infinity)
    n       logits
    hash    where the logits start
    shape   [scale, cubed, ties, holes, boost]
    prompt  [tokens accepted before the first pick, different tokens among them]
    picks   the tokens; each is accepted before the next is picked

The chain is put together as common/sampling.cpp does. Needs: pip install numpy llama-cpp-python
"""
import argparse, ctypes, json, os, random
import numpy as np
import llama_cpp as L

ORDER = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
DEFAULTS = dict(
    samplers=ORDER, seed=0xFFFFFFFF, min_keep=0, top_k=40, top_p=0.95, min_p=0.05, xtc_probability=0.0,
    xtc_threshold=0.1, typ_p=1.0, temp=0.8, dynatemp_range=0.0, dynatemp_exponent=1.0, penalty_last_n=64,
    penalty_repeat=1.0, penalty_freq=0.0, penalty_present=0.0, dry_multiplier=0.0, dry_base=1.75,
    dry_allowed_length=2, dry_penalty_last_n=64, dry_sequence_breakers=["\n", ":", "\"", "*"],
    top_n_sigma=-1.0, mirostat=0, mirostat_tau=5.0, mirostat_eta=0.1, logit_bias=[])
BREAKERS = ["\n", ":", "\"", "*", ":\n", "self.", "'(", "()", "&'()*", "def f", "    ", "\n\n", "$%", "é", ""]


def mix(h):
    """The finaliser of MurmurHash3, on arrays of uint32."""
    h = np.asarray(h, dtype=np.uint32)
    with np.errstate(over="ignore"):
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def logits(n, hash_, step, shape):
    scale, cubed, ties, holes, boost = shape
    h = mix(mix(np.uint32(hash_ ^ step)) ^ np.arange(n, dtype=np.uint32))
    v = (h >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24) * np.float32(2) - np.float32(1)
    x = (v * v * v if cubed else v) * np.float32(scale)
    if ties:
        x = np.floor(x * np.float32(4)) / np.float32(4)
    x[6:22] += np.float32(boost)
    if holes:
        x[h % np.uint32(8) == 0] = -np.inf
    return x


def prompt(hash_, n, alphabet):
    return [6 + int(h) % alphabet for h in mix(np.uint32(hash_) ^ (np.arange(n, dtype=np.uint32) + np.uint32(1 << 20)))]


def chain(vocab, o, forbid, n):
    c = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
    add = lambda s: L.llama_sampler_chain_add(c, s)
    bias = [(t, b) for t, b in o["logit_bias"]] + [(t, float("-inf")) for t in forbid]
    if bias:
        arr = (L.llama_logit_bias * len(bias))(*[L.llama_logit_bias(t, b) for t, b in bias])
        add(L.llama_sampler_init_logit_bias(n, len(bias), arr))
    seed, keep = o["seed"], o["min_keep"]
    if o["mirostat"]:
        add(L.llama_sampler_init_temp(o["temp"]))
        tau, eta = o["mirostat_tau"], o["mirostat_eta"]
        add(L.llama_sampler_init_mirostat(n, seed, tau, eta, 100) if o["mirostat"] == 1 else
            L.llama_sampler_init_mirostat_v2(seed, tau, eta))
        return c
    texts = [t.encode() for t in o["dry_sequence_breakers"]]
    make = {
        "penalties": lambda: L.llama_sampler_init_penalties(
            n, o["penalty_last_n"], o["penalty_repeat"], o["penalty_freq"], o["penalty_present"]),
        "dry": lambda: L.llama_sampler_init_dry(
            vocab, o["dry_multiplier"], o["dry_base"], o["dry_allowed_length"], o["dry_penalty_last_n"],
            (ctypes.c_char_p * len(texts))(*texts), len(texts)),
        "top_n_sigma": lambda: L.llama_sampler_init_top_n_sigma(o["top_n_sigma"]),
        "top_k": lambda: L.llama_sampler_init_top_k(o["top_k"]),
        "typ_p": lambda: L.llama_sampler_init_typical(o["typ_p"], keep),
        "top_p": lambda: L.llama_sampler_init_top_p(o["top_p"], keep),
        "min_p": lambda: L.llama_sampler_init_min_p(o["min_p"], keep),
        "xtc": lambda: L.llama_sampler_init_xtc(o["xtc_probability"], o["xtc_threshold"], keep, seed),
        "temperature": lambda: L.llama_sampler_init_temp_ext(
            o["temp"], o["dynatemp_range"], o["dynatemp_exponent"]),
    }
    for name in o["samplers"]:
        add(make[name]())
    add(L.llama_sampler_init_dist(seed))
    return c


def picks(vocab, o, case, n_steps):
    n = case["n"]
    c = chain(vocab, o, case.get("forbid", []), n)
    for token in prompt(case["hash"], *case["prompt"]):
        L.llama_sampler_accept(c, token)
    out = []
    data = np.zeros(n, dtype=np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True))
    for step in range(n_steps):
        data["id"] = np.arange(n)
        data["logit"] = logits(n, case["hash"], step, case["shape"])
        ptr = data.ctypes.data_as(ctypes.POINTER(L.llama_token_data))
        arr = L.llama_token_data_array(data=ptr, size=n, selected=-1, sorted=False)
        L.llama_sampler_apply(c, ctypes.byref(arr))
        token = int(arr.data[arr.selected].id)
        L.llama_sampler_accept(c, token)
        out.append(token)
    L.llama_sampler_free(c)
    return out


def options(r):
    """Options with a few samplers turned on, sometimes all, sometimes in a strange order."""
    o, often = {"seed": r.randrange(1 << 32)}, r.choice([0.15, 0.3, 0.7])
    maybe = lambda **values: o.update(values) if r.random() < often else None
    num = lambda lo, hi: round(r.uniform(lo, hi), 3)
    maybe(top_k=r.choice([-1, 0, 1, 2, 5, 40, 100, 128, 129, 200, 700, 4000]))
    maybe(top_p=r.choice([0.0, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0, num(0, 1)]))
    maybe(min_p=r.choice([0.0, 0.01, 0.1, 0.5, 1.0, num(0, 0.3)]))
    maybe(typ_p=r.choice([0.0, 0.2, 0.5, 0.9, 0.99, num(0, 1)]))
    maybe(top_n_sigma=r.choice([0.0, 0.3, 1.0, 2.0, num(0, 4)]))
    maybe(xtc_probability=r.choice([0.3, 0.5, 1.0]), xtc_threshold=r.choice([0.0, 0.02, 0.1, 0.3, 0.5, 0.6]))
    maybe(temp=r.choice([-1.0, 0.0, 0.1, 0.5, 1.0, 1.3, 2.0, 5.0]))
    maybe(dynatemp_range=num(0, 2), dynatemp_exponent=r.choice([0.0, 0.5, 1.0, 2.3]))
    maybe(min_keep=r.choice([1, 2, 5, 30]))
    last_n = [0, 1, 5, 64, 200]
    maybe(penalty_repeat=num(0.7, 1.8), penalty_last_n=r.choice(last_n))
    maybe(penalty_freq=num(-1, 1), penalty_last_n=r.choice(last_n))
    maybe(penalty_present=num(-1, 1))
    maybe(dry_multiplier=num(0.1, 3), dry_base=r.choice([0.5, 1.0, 1.2, 1.75, 4.0]),
          dry_allowed_length=r.choice([0, 1, 2, 3, 6]), dry_penalty_last_n=r.choice([0, 1, 10, 64, 300]))
    if r.random() < often:
        o["dry_sequence_breakers"] = r.sample(BREAKERS, r.randrange(5))
    if r.random() < 0.25:
        o.update(mirostat=r.choice([1, 2]), mirostat_tau=r.choice([0.5, 3.0, 5.0, 9.0]),
                 mirostat_eta=r.choice([0.02, 0.1, 0.7]))
    if r.random() < 0.3:
        o["samplers"] = r.sample(ORDER, r.randrange(10)) + r.choices(ORDER, k=r.choice([0, 0, 2]))
    return o


def make_case(r, vocab):
    o = options(r)
    n = r.choice([32, 33, 100, 128, 129, 500, 1000, 1024, 1025, 2500, 4096])
    case = {"o": o, "n": n, "hash": r.randrange(1 << 32)}
    case["shape"] = [r.choice([2, 8, 16, 30]), r.randrange(2), int(r.random() < 0.4), int(r.random() < 0.3),
                     r.choice([0, 4, 12])]
    case["prompt"] = [r.choice([0, 3, 20, 90]), r.choice([1, 2, 4, 12, 16])]
    if r.random() < 0.2:
        # Repetitions that matter: a text of few tokens, which the logits favour a little.
        o.update(mirostat=0, samplers=ORDER, dry_multiplier=r.choice([0.3, 1.0]), dry_penalty_last_n=64,
                 dry_base=r.choice([1.2, 1.75]), dry_allowed_length=r.randrange(4))
        case["shape"], case["prompt"] = [4, 1, 0, 0, 4], [r.choice([20, 90]), r.choice([2, 3, 4, 12])]
    if r.random() < 0.2:
        o["logit_bias"] = [[r.randrange(min(n, 40)), round(r.uniform(-8, 8), 2)] for _ in range(r.randrange(1, 6))]
    if r.random() < 0.1:
        case["forbid"] = [r.randrange(n) for _ in range(4)]
    full = {**DEFAULTS, **o}
    case["picks"] = picks(vocab, full, case, r.choice([3, 8, 8, 25]))
    case["o"] = {k: v for k, v in o.items() if v != DEFAULTS[k]}
    return case


def words(vocab):
    """Pieces of the vocabulary and the tokens of each breaker's rests; bytes as Latin-1 text."""
    buf, toks = ctypes.create_string_buffer(1024), (L.llama_token * 64)()
    pieces = []
    for i in range(L.llama_vocab_n_tokens(vocab)):
        k = L.llama_detokenize(vocab, (L.llama_token * 1)(i), 1, buf, 1024, False, True)
        pieces.append(buf.raw[:k].decode("latin-1"))
    rests = {b.encode()[i:] for b in BREAKERS for i in range(1, len(b.encode()))}
    tails = {}
    for rest in sorted(rests):
        k = L.llama_tokenize(vocab, rest, len(rest), toks, 64, False, False)
        tails[rest.decode("latin-1")] = list(toks[:k])
    return {"pieces": pieces, "tails": tails}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", default="models/default.gguf")
    a.add_argument("--out", default="tests/golden/sampler")
    a.add_argument("--cases", type=int, default=750)
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    params = L.llama_model_default_params()
    params.vocab_only = True
    model = L.llama_model_load_from_file(a.model.encode(), params)
    vocab = L.llama_model_get_vocab(model)
    dump = lambda x: json.dumps(x, separators=(",", ":"), ensure_ascii=True)
    os.makedirs(a.out, exist_ok=True)
    with open(os.path.join(a.out, "vocab.json"), "w") as f:
        f.write(dump(words(vocab)) + "\n")
    r = random.Random(a.seed)
    with open(os.path.join(a.out, "cases.jsonl"), "w") as f:
        for _ in range(a.cases):
            f.write(dump(make_case(r, vocab)) + "\n")


@L.llama_log_callback
def quiet(level, text, user_data):
    pass


if __name__ == "__main__":
    main()
