#!/usr/bin/env python3
"""Hold jetforge against llama.cpp on the same files: the table of docs/performance.md.

    benches/peer/build.sh
    table.py --jetforge target/release/jetforge --llama-bench target/peer/bin/llama-bench \
        --threads 1,2 --rounds 5 [--prompt 512] [--generate 128@0,64@2048] MODEL.gguf ...

Each round runs one program and then the other on the same file, prompt, threads and cache type (f16),
so that a machine that is busy or throttles is busy for both. `OURS.gguf=THEIRS.gguf` gives each program a
file of its own, for formats that llama.cpp does not read. llama.cpp first shows which of its
settings is the fastest for each test, of flash attention on and off and of weights repacked and as
they are; the rounds use that one. A ratio is taken within a round; the table has the medians and,
for the ratio, the lowest and the highest round. Both programs time themselves.

`--prefix "nice -n -5"` puts a command before both.
"""

import argparse
import itertools
import json
import pathlib
import platform
import statistics
import subprocess
import sys

SETTINGS = [("1", "on"), ("1", "off"), ("0", "on"), ("0", "off")]  # repack, flash attention


def call(args, command):
    done = subprocess.run(args.prefix.split() + command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr[-600:]}")
    return done.stdout


def theirs(args, path, n_threads, test, setting):
    """llama-bench's tokens a second."""
    command = [args.llama_bench, "-m", str(path), "-t", str(n_threads), "-r", "1", "-o", "json"]
    command += ["--repack", setting[0], "-fa", setting[1], "-b", "512", "-ub", "512"]
    kind, n, depth = test
    command += ["-p", n, "-n", "0"] if kind == "pp" else ["-p", "0", "-n", n, "-d", depth]
    return json.loads(call(args, command))[0]["avg_ts"]


def ours(args, path, n_threads, test):
    """The tokens a second of `jetforge bench`."""
    kind, n, depth = test
    command = [args.jetforge, "bench", "-m", str(path), "-t", str(n_threads), "-r", "1", "--json"]
    command += ["--quick", "--streams", "1"]
    command += ["-p", n if kind == "pp" else "1", "-n", n if kind == "tg" else "1", "-d", depth]
    name = f"pp{n}" if kind == "pp" else f"tg{n}" + (f" @ {depth}" if depth != "0" else "")
    for line in call(args, command).splitlines():
        figure = json.loads(line)
        if figure["test"] == name:
            return figure["median"]
    sys.exit(f"jetforge bench reports no {name}")


def row(args, pair, n_threads, test):
    our_file, their_file = pair
    found = {s: theirs(args, their_file, n_threads, test, s) for s in SETTINGS}
    best = max(found, key=found.get)
    rounds = [
        (ours(args, our_file, n_threads, test), theirs(args, their_file, n_threads, test, best))
        for _ in range(args.rounds)
    ]
    ratios = [us / them for us, them in rounds]
    medians = [statistics.median(r[who] for r in rounds) for who in (0, 1)]
    kind, n, depth = test
    name = f"{kind}{n}" + (f" @ {depth}" if kind == "tg" and depth != "0" else "")
    how = f"{'repacked' if best[0] == '1' else 'as they are'}, flash {best[1]}"
    files = our_file.stem if our_file == their_file else f"{our_file.stem}, {their_file.stem}"
    return (f"| {files} | {n_threads} | {name} | {medians[0]:.1f} | {medians[1]:.1f} ({how}) "
            f"| **{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f}) |")


def pair_of(text):
    """`FILE` for both, or `OURS=THEIRS`."""
    ours_, _, theirs_ = text.partition("=")
    return pathlib.Path(ours_), pathlib.Path(theirs_ or ours_)


def machine():
    """Processor, its flags that matter here."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    field = lambda name: next(
        (l.split(":", 1)[1].strip() for l in cpu.splitlines() if l.startswith(name)), "?"
    )
    flags = set(field("flags").split())
    wanted = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni",
              "amx_int8"]
    sets = " ".join(f for f in wanted if f in flags)
    return (f"{field('model name')} (family {field('cpu family')}, model {field('model')}), "
            f"{cpu.count('processor')} threads, {sets}; {platform.system()} {platform.release()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jetforge", required=True, help="the program")
    parser.add_argument("--llama-bench", required=True, help="the program")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", default="512", help="lengths, comma-separated; empty for none")
    parser.add_argument("--generate", default="128@0", help="TOKENS@DEPTH,...; empty for none")
    parser.add_argument("--prefix", default="", help="command before both programs")
    parser.add_argument("models", nargs="+", type=pair_of, help="FILE, or OURS=THEIRS")
    args = parser.parse_args()
    tests = [("pp", n, "0") for n in args.prompt.split(",") if n]
    tests += [("tg", *one.split("@")) for one in args.generate.split(",") if one]
    version = call(args, [args.jetforge, "--version"]).strip()
    build = json.loads(call(args, [args.llama_bench, "-m", str(args.models[0][1]), "-p", "1", "-n",
                                   "0", "-r", "1", "-o", "json"]))[0]
    print(f"{machine()}\n\n{version}; llama.cpp {build['build_commit']}; {args.rounds} rounds\n")
    print("| model | threads | test | ours, tok/s | theirs, tok/s | ratio (low-high) |")
    print("|---|---|---|---|---|---|", flush=True)
    threads = [int(n) for n in args.threads.split(",")]
    for pair, n_threads, test in itertools.product(args.models, threads, tests):
        print(row(args, pair, n_threads, test), flush=True)


if __name__ == "__main__":
    main()
