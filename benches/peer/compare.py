#!/usr/bin/env python3
"""Compare jetforge with llama.cpp on the same files: prefill and decode, in turn, in one run.

    compare.py --jetforge target/release/jetforge --threads 1,2 --rounds 5 MODEL.gguf ...

Each round runs one program and then the other on the same number of prompt tokens, followed by the
same number of generated tokens at that depth, so that a machine that is busy or throttles is busy
for both. A ratio is taken within a round; the table shows the medians and, for the ratios, the
lowest and the highest round. jetforge times itself (`generate --json`); llama.cpp runs in this
process through the low-level API of llama-cpp-python, with its defaults and a batch of 512.

Needs: pip install llama-cpp-python (built from source for this machine, or the peer is slower than
it has to be). `--prefix "chrt -r 1"` puts a command before jetforge; start this script in the same
way, so that both are scheduled alike.
"""

import argparse
import ctypes
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import llama_cpp as api

SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
WORDS = "the quick brown fox writes code and tests it before lunch "


class Peer:
    """A model in llama.cpp."""

    def __init__(self, path, n_threads, n_ctx):
        self.model = api.llama_model_load_from_file(
            str(path).encode(), api.llama_model_default_params()
        )
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = n_threads
        self.context = api.llama_init_from_model(self.model, params)
        self.decode([1] * 16)

    def decode(self, tokens):
        array = (api.llama_token * len(tokens))(*tokens)
        if api.llama_decode(self.context, api.llama_batch_get_one(array, len(tokens))) != 0:
            sys.exit("llama.cpp refused a batch")
        api.llama_synchronize(self.context)

    def run(self, n_prompt, n_generate):
        """Tokens a second of prefill and of decode."""
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        start = time.perf_counter()
        for at in range(0, n_prompt, 512):
            self.decode([100 + i % 300 for i in range(at, min(n_prompt, at + 512))])
        middle = time.perf_counter()
        for _ in range(n_generate):
            self.decode([5])
        end = time.perf_counter()
        return n_prompt / (middle - start), n_generate / (end - middle)

    def close(self):
        api.llama_free(self.context)
        api.llama_model_free(self.model)


def ours(args, path, n_threads, n_words, n_generate):
    """jetforge's answer to a prompt of `n_words` words."""
    words = WORDS.split()
    prompt = " ".join(words[i % len(words)] for i in range(n_words))
    command = args.prefix.split() + [args.jetforge, "generate", "--model", str(path), "--raw"]
    command += ["--threads", str(n_threads), "--n-predict", str(n_generate), "--ignore-eos"]
    command += ["--temp", "0", "--json", "--prompt", prompt, *args.option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:4])}: {done.stderr}")
    return json.loads(done.stdout[done.stdout.index("{"):])


def words_for(args, path, n_prompt):
    """Words whose prompt has about `n_prompt` tokens, and at most that."""
    probe = ours(args, path, 1, 40, 1)["n_prompt"]
    return max(1, (n_prompt - 2) * 40 // probe)


def cell(values, ratios):
    low, high = min(ratios), max(ratios)
    middle = statistics.median(ratios)
    return f"{values[0]:.1f} / {values[1]:.1f} | **{middle:.2f}** ({low:.2f}-{high:.2f})"


def compare(args, path, n_threads):
    """A row of the table."""
    n_words = words_for(args, path, args.prompt)
    peer = Peer(path, n_threads, args.prompt + args.generate + 64)
    rounds = []
    for _ in range(args.rounds):
        answer = ours(args, path, n_threads, n_words, args.generate)
        times, n_new = answer["timings"], answer["n_generated"]
        # Each token is sampled and then run through the model: as many steps as tokens.
        us = (answer["n_prompt"] * 1e3 / times["prefill_ms"],
              n_new * 1e3 / max(times["decode_ms"], 1e-9), times["load_ms"])
        rounds.append((us, peer.run(answer["n_prompt"], args.generate)))
    peer.close()
    cells = []
    for i in (0, 1):
        medians = [statistics.median(r[who][i] for r in rounds) for who in (0, 1)]
        cells.append(cell(medians, [r[0][i] / r[1][i] for r in rounds]))
    load = statistics.median(r[0][2] for r in rounds)
    return f"| {path.stem} | {n_threads} | {cells[0]} | {cells[1]} | {load:.0f} |"


def machine():
    """Processor, its flags that matter here, and versions."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    field = lambda name: next(
        (l.split(":", 1)[1].strip() for l in cpu.splitlines() if l.startswith(name)), "?"
    )
    flags = set(field("flags").split())
    wanted = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni"]
    sets = " ".join(f for f in wanted if f in flags)
    return (f"{field('model name')} (family {field('cpu family')}, model {field('model')}), "
            f"{cpu.count('processor')} threads, {sets}; {platform.system()} {platform.release()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jetforge", required=True, help="the program")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens, at most")
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--prefix", default="", help="command before jetforge")
    parser.add_argument("--option", action="append", default=[], help="option for jetforge")
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    api.llama_log_set(SILENT, ctypes.c_void_p())
    version = subprocess.run([args.jetforge, "--version"], capture_output=True, text=True,
                             check=True).stdout.strip()
    print(f"{machine()}\n\n{version}; llama-cpp-python {api.__version__}; "
          f"{args.rounds} rounds, prompts of up to {args.prompt} tokens, "
          f"{args.generate} generated\n")
    print("| model | threads | prefill tok/s, ours / theirs | ratio (low-high) "
          "| decode tok/s, ours / theirs | ratio (low-high) | our load ms |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for path in args.models:
        for n_threads in map(int, args.threads.split(",")):
            print(compare(args, path, n_threads), flush=True)


if __name__ == "__main__":
    main()
