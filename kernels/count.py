#!/usr/bin/env python3
"""Counts what the kernels for products execute for each weight, from their machine code.

    kernels/count.py [--columns K] [--tools DIR] [--counts FILE [--check]] CUBIN...

Of 2048 columns, each kernel that has a limit must be there and keep it. `--counts` writes the
instructions of each kernel to a file, or with `--check` holds that file to them: `jetforge bench`
predicts from kernels/counts.txt.

The rule: one lane's whole path, from the first instruction of the kernel to its end. Every
instruction counts once, those of the loop over groups as often as a lane goes through it
(ceil(K / 256), since a lane has a part of each group of its four rows), also where a predicate
switches it off or a branch passes it by: an upper bound. Divided by the lane's weights, 4 K / 8,
and for a gemm by its columns too. Padding behind the last EXIT does not count. A kernel with other
loops is refused: the rule would not hold for it.

    issue    instructions for each weight
    slow     of them, those of half or quarter rate: conversions, shuffles, shifts, byte permutes
    pairs    of them, multiply-adds of pairs of halves
"""

import argparse
import pathlib
import re
import subprocess
import sys

# Highest issue for a weight, at 2048 columns of weights; of a gemm, for a weight and column.
LIMITS = {"gemv_n4_f16_c1": 2.2, "gemv_q4_0_f16_c1": 2.2, "gemv_n3_f16_c1": 2.5,
          "gemv_q3_k_f16_c1": 2.5, "gemm_n4_f16": 0.9, "gemm_q4_0_f16": 0.9, "gemm_n3_f16": 0.95,
          "gemm_q3_k_f16": 1.2, "gemm_q8_0_f16": 0.9}
# Columns of a gemm: of types with kernels of their own, of the others.
TUNED = ("n4", "n3", "q4_0", "q3_k", "q8_0")
SLOW = re.compile(r"^(F2F|I2F|F2I|I2I|SHFL|SHR|SHL|SHF|PRMT|BFE|BFI|MUFU)\b")
# Braces hold pairs that the disassembler expects to be issued together.
LINE = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:\{\s+)?(.*?)\s*(?:;|\})")


def functions(listing):
    """Instructions (address, text) of each function of a cuobjdump listing."""
    name, found = None, {}
    for line in listing.splitlines():
        if "Function :" in line:
            name = line.split(":")[1].strip()
            found[name] = []
        elif name and (match := LINE.search(line)):
            found[name].append((int(match[1], 16), match[2]))
    return found


def without_padding(code):
    """The code without what follows the last EXIT, unless something before jumps there."""
    last = max(i for i, (_, text) in enumerate(code) if "EXIT" in text)
    for _, text in code[:last]:
        match = re.search(r"BRA\S* (0x[0-9a-f]+)", text)
        if match and int(match[1], 16) > code[last][0]:
            raise ValueError("code behind the last EXIT")
    return code[:last + 1]


def loops(code):
    """Ranges of addresses that a branch leads back over."""
    found = []
    for address, text in code:
        match = re.search(r"BRA\S* (0x[0-9a-f]+)", text)
        if match and int(match[1], 16) <= address:
            found.append((int(match[1], 16), address))
    return found


def count(name, code, n_trip):
    code = without_padding(code)
    found = loops(code)
    # A gemm goes through its groups within a loop over splits, of which a small device has one.
    n_loop = 2 if name.startswith("gemm_") else 1
    start, end = min(found, key=lambda loop: loop[1] - loop[0])
    if len(found) != n_loop or any(s > start or e < end for s, e in found):
        raise ValueError(f"{name}: {len(found)} loops, where {n_loop} are expected")
    issue = slow = pairs = 0
    for address, text in code:
        times = n_trip if start <= address <= end else 1
        opcode = re.sub(r"^@!?U?P\d\s+", "", text)
        issue += times
        slow += times if SLOW.match(opcode) else 0
        pairs += times if opcode.startswith("HFMA2") else 0
    return issue, slow, pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--tools", default="target/cuda-tools")
    parser.add_argument("--counts")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("cubins", nargs="+")
    args = parser.parse_args()
    n_trip, n_lane = -(-args.columns // 256), 4 * args.columns / 8
    seen, bad = {}, False
    print(f"| kernel | instructions | issue | slow | pairs | at {args.columns} columns")
    print("|---|---|---|---|---|")
    for cubin in args.cubins:
        command = [f"{args.tools}/bin/cuobjdump", "-sass", cubin]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name, code in sorted(functions(listing).items()):
            if not name.startswith(("gemv_", "gemm_")):
                continue
            issue, slow, pairs = count(name, code, n_trip)
            n_column = 1
            if name.startswith("gemm_"):
                n_column = 16 if name[5:-4] in TUNED else 8
            n_weight = n_lane * n_column
            limit = LIMITS.get(name) if args.columns == 2048 else None
            over = limit is not None and issue / n_weight > limit
            bad |= over
            seen[name] = f"{name} {issue} {n_weight:.0f}\n"
            note = f" above {limit} |" if over else ""
            each = " | ".join(f"{n / n_weight:.2f}" for n in (issue, slow, pairs))
            print(f"| {name} | {issue} | {each} |{note}")
    missing = sorted(set(LIMITS) - set(seen))
    if args.columns == 2048 and missing:
        print("not among them: " + ", ".join(missing), file=sys.stderr)
        bad = True
    if args.counts:
        head = f"# kernel, instructions of a lane at {args.columns} columns, its products\n"
        text = head + "".join(line for _, line in sorted(seen.items()))
        if not args.check:
            pathlib.Path(args.counts).write_text(text)
        elif pathlib.Path(args.counts).read_text() != text:
            print(f"{args.counts} does not say what was counted", file=sys.stderr)
            bad = True
    return bad


if __name__ == "__main__":
    sys.exit(main())
