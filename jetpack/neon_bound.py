#!/usr/bin/env python3
"""Holds the 4-bit tiles of a program for aarch64 to a static bound on a Cortex-A57.

    jetpack/neon_bound.py [--all] PROGRAM

PROGRAM is what `jetpack/cross.sh` builds, with its symbols (it calls this script with `--bound`). For
each 4-bit type the loop that multiplies eight columns is cut out of the disassembly, and llvm-mca's
model of the core says how many cycles it takes. Below 6 multiply-adds a cycle the script fails; the multiplier could do 8.

    group of 256 weights = 8 x the loop over a block of 32  +  what stands around it, once

A loop is a branch back and what it jumps over. The one of the widest tile is the one with as many
multiplications as eight columns, 32 weights and four rows need: 128, at 8 products each. Code
around it is taken as if it ran straight through, which counts too much rather than too little.

With --all other types are shown too, and held to nothing; and in a last column what the kernels with
dot products would do on a Neoverse N1, whose vector units are a Cortex-A76's, where LLVM 19's llvm-mca
is installed: older ones have no model of that core. It could do 32.
"""

import re
import shutil
import subprocess
import sys
from typing import NamedTuple

BOUND = 6.0
HELD = ["Q4_0", "Q4_K", "N4"]
# Types whose panels are alike: the compiler keeps one of the two kernels, under either name.
ALIKE = {"Q4_K": "N4", "N4": "Q4_K"}
SHOWN = ["Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "N3"]
COLUMNS, ROWS, BLOCK, BLOCKS = 8, 4, 32, 8
BRANCH = re.compile(r"(?:b\.\w+|b|cbn?z|tbn?z)\s+(?:.*,\s*)?(?:0x)?([0-9a-f]+)(?:\s+<|$)")


class Kernels(NamedTuple):
    """Kernels of one instruction set, and whose model counts their cycles."""

    name: str  # a pattern, whose group is the type
    multiply: str  # a pattern of what multiplies
    n_product: int  # products of one of these
    mca: str
    core: str

    def n_multiply(self, code):
        return sum(1 for _, text in code if re.match(self.multiply, text))

    def n_multiply_of_tile(self):
        return COLUMNS * ROWS * BLOCK // self.n_product


NEON = Kernels(r"::panels::<.*NeonLanes<false>, .*::(\w+)>", r"s(mull|mlal)2?\s+v\d+\.8h,", 8,
               "llvm-mca", "cortex-a57")
DOTPROD = Kernels(r"::panels_dotprod::<.*::(\w+)>", r"sdot\s+v\d+\.4s,", 16,
                  "llvm-mca-19", "neoverse-n1")


def run(*command, text=None):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def find(kernels, program):
    """Start and end of the panel kernel of each type."""
    found = {}
    for line in run("aarch64-linux-gnu-nm", "-C", "-S", "--defined-only", program).splitlines():
        match = re.match(r"(\w+) (\w+) [tTwW] (.*)", line)
        name = match and re.search(kernels.name, match[3])
        if name:
            start = int(match[1], 16)
            found[name[1]] = (start, start + int(match[2], 16))
    return found


def disassemble(program, start, end):
    """Addresses and instructions."""
    text = run("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn",
               f"--start-address={start}", f"--stop-address={end}", program)
    lines = (re.match(r"\s*([0-9a-f]+):\s+(.*)", line) for line in text.splitlines())
    return [(int(m[1], 16), re.split(r"\s*//|\s*;", m[2])[0]) for m in lines if m]


def loops(code):
    """First and last index of everything that a branch jumps back over."""
    place = {address: i for i, (address, _) in enumerate(code)}
    for i, (address, text) in enumerate(code):
        match = BRANCH.match(text)
        target = match and int(match[1], 16)
        if target is not None and target <= address and target in place:
            yield place[target], i


def cycles(kernels, code):
    """Cycles of one pass over this code, of a hundred that follow each other."""
    lines = [re.sub(r"(0x)?[0-9a-f]+ <.*>", ".Lstart", text) for _, text in code]
    text = ".Lstart:\n" + "\n".join(lines) + "\n"
    cpu = f"-mcpu={kernels.core}"
    out = run(kernels.mca, "-mtriple=aarch64", cpu, "-iterations=100", text=text)
    return int(re.search(r"Total Cycles:\s+(\d+)", out)[1]) / 100


def rate(kernels, code):
    """Multiply-adds a cycle of the widest tile, and how it comes about; None if it is not found."""
    by_length = sorted(loops(code), key=lambda loop: loop[1] - loop[0])
    n_multiply = kernels.n_multiply_of_tile()
    is_block = (loop for loop in by_length
                if kernels.n_multiply(code[loop[0]:loop[1] + 1]) == n_multiply)
    start, end = next(is_block, (0, 0))
    if start == end:
        return None
    block = cycles(kernels, code[start:end + 1])
    # The loop over groups begins before that and goes on from its end, or from behind it.
    outer = next((loop for loop in by_length if loop[0] < start < loop[1]), (start, end))
    rest = code[outer[0]:start] + code[end + 1:outer[1] + 1]
    around = cycles(kernels, rest) if rest else 0.0
    products = COLUMNS * ROWS * BLOCK * BLOCKS
    return products / (BLOCKS * block + around), end - start + 1, block, around


def measured(kernels, program, name, found):
    """What `rate` says of the kernel of a type."""
    kernel = found.get(name) or found.get(ALIKE.get(name))
    return kernel and rate(kernels, disassemble(program, *kernel))


def main(program, names, with_dots):
    found, found_dots = find(NEON, program), find(DOTPROD, program) if with_dots else {}
    failed = []
    head = f"{'type':8} {'MAC/cycle':>9} {'a block':>8} {'around 8':>9} instructions"
    print(head + f" {DOTPROD.core:>12}" * with_dots)
    for name in names:
        result = measured(NEON, program, name, found)
        if not result:
            print(f"{name:8} no loop of {NEON.n_multiply_of_tile()} multiplications found")
            failed += [name] if name in HELD else []
            continue
        macs, length, block, around = result
        dots = measured(DOTPROD, program, name, found_dots)
        dots = f" {dots[0]:12.2f}" if dots else ""
        print(f"{name:8} {macs:9.2f} {block:8.1f} {around:9.1f} {length:12}{dots}")
        failed += [name] if name in HELD and macs < BOUND else []
    if failed:
        sys.exit(f"below {BOUND} multiply-adds a cycle: {', '.join(failed)}")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--all"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    shows_all = "--all" in sys.argv
    main(arguments[0], HELD + SHOWN * shows_all, shows_all and shutil.which(DOTPROD.mca) is not None)
