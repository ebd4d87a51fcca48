#!/usr/bin/env python3
"""Hold the memory probe of `jetforge bench memory` beside sysbench's, in turn.

    memory.py --jetforge target/release/jetforge --threads 1,2 --rounds 5

Both read blocks far larger than any cache, each thread its own, for about as long. A limit that is
lower than what another program reads would flatter every share that is taken of it, so at least 95 %
of what sysbench reports is asked for; the exit code is 1 where it is missed. sysbench is Debian's
package of that name; --sysbench names another program.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys

ASKED = 0.95
BLOCK = "256M"


def call(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {(done.stderr or done.stdout)[-600:]}")
    return done.stdout


def ours(args, n_threads):
    """GB/s of the probe with so many threads."""
    command = [args.jetforge, "bench", "memory", "-t", str(n_threads), "-r", "1", "--json"]
    name = "read, 1 thread" if n_threads == 1 else f"read, {n_threads} threads"
    figures = map(json.loads, call(command).splitlines())
    found = next((f["median"] for f in figures if f["test"] == name), None)
    return found if found is not None else sys.exit(f"jetforge bench memory reports no {name}")


def theirs(args, n_threads):
    """GB/s of sysbench with so many threads."""
    command = [args.sysbench, "memory", "--memory-oper=read", "--memory-access-mode=seq",
               "--memory-scope=local", f"--memory-block-size={BLOCK}", "--memory-total-size=100T",
               f"--time={args.seconds}", f"--threads={n_threads}", "run"]
    found = re.search(r"\(([0-9.]+) MiB/sec\)", call(command))
    return float(found[1]) * 2**20 / 1e9 if found else sys.exit("sysbench reports no MiB/sec")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jetforge", required=True, help="the program")
    parser.add_argument("--sysbench", default="sysbench", help="the program")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each run of sysbench")
    args = parser.parse_args()
    print("| threads | probe, GB/s | sysbench, GB/s | ratio (low-high) | |")
    print("|---|---|---|---|---|", flush=True)
    is_kept = True
    for n_threads in map(int, args.threads.split(",")):
        rounds = [(ours(args, n_threads), theirs(args, n_threads)) for _ in range(args.rounds)]
        ratios = [us / them for us, them in rounds]
        us, them = (statistics.median(r[who] for r in rounds) for who in (0, 1))
        ratio = statistics.median(ratios)
        is_kept &= ratio >= ASKED
        verdict = "" if ratio >= ASKED else f"MISSED: {ASKED} asked"
        print(f"| {n_threads} | {us:.1f} | {them:.1f} | **{ratio:.2f}** "
              f"({min(ratios):.2f}-{max(ratios):.2f}) | {verdict} |", flush=True)
    sys.exit(not is_kept)


if __name__ == "__main__":
    main()
