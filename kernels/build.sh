#!/usr/bin/env bash
# Makes the PTX that ships out of the kernels, and checks it.
#
#   kernels/build.sh              writes kernels/ptx/sm_53/*.ptx and manifest.toml
#   kernels/build.sh --check      builds again beside them and compares the bytes
#
# Both assemble every kernel: one that spills, or whose registers times threads are more than the
# 32,768 of a Jetson Nano's thread block, is refused, and so is PTX that a driver of CUDA 10.2 could
# not load. Needs clang++-19 (CLANG) and the tools of kernels/get_ptxas.sh (CUDA_TOOLS, by default
# target/cuda-tools). Seconds of work, and no CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C
clang=${CLANG:-clang++-19}
tools=${CUDA_TOOLS:-../target/cuda-tools}
flags=(-x cuda --cuda-device-only --cuda-gpu-arch=sm_53 -nocudainc -nocudalib -nostdinc
    -Xclang -target-feature -Xclang +ptx60 -std=c++17 -O3 -ffp-contract=fast -Wall -Werror)
registers_max=32768

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# The entry points of a PTX file with the threads of their blocks: name, threads.
entries() {
    awk '/\.entry / { sub(/\(.*/, "", $0); name = $NF }
         /\.maxntid/ { gsub(",", "", $2); print name, $2 }' "$1"
}

# name, registers of every kernel in what `ptxas -v` says; fails on a spill.
registers() {
    awk '/Compiling entry function/ { split($0, part, "\047"); name = part[2] }
         /bytes spill stores/ && !/ 0 bytes spill stores/ { print name " spills" >"/dev/stderr"; bad = 1 }
         /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); print name, substr($0, RSTART + 5, RLENGTH - 5) }
         END { exit bad }' "$1"
}

{
    echo "# Written by kernels/build.sh. What was compiled, how, and what the assembler said of it."
    echo "compiler = \"$("$clang" --version | head -n 1)\""
    echo "flags = \"${flags[*]}\""
    echo "assembler = \"$("$tools/bin/ptxas" --version | tail -n 1)\""
    echo "headers = \"$(cat ./*.h | sha256sum | cut -d' ' -f1)\""
} >"$out/manifest.toml"

for source in *.cu; do
    name=${source%.cu}
    [ "$name" = canary_f32 ] && continue
    # Without comments, which are half of the bytes.
    "$clang" "${flags[@]}" -S -o - "$source" | sed '/^[[:space:]]*\/\//d' >"$out/$name.ptx"
    grep -qx '\.version 6\.[0-5]' "$out/$name.ptx" || { echo "$name: PTX above 6.5"; exit 1; }
    grep -qx '\.target sm_53' "$out/$name.ptx" || { echo "$name: not for sm_53"; exit 1; }
    "$tools/bin/ptxas" -v -arch=sm_53 -O3 -o "$out/$name.cubin" "$out/$name.ptx" 2>"$out/said" || {
        cat "$out/said"
        exit 1
    }
    registers "$out/said" | sort >"$out/registers"
    printf '\n[%s]\nsource = "%s"\nkernels = [\n' "$name" "$(sha256sum <"$source" | cut -d' ' -f1)"
    while read -r kernel threads count; do
        if [ $((threads * count)) -gt $registers_max ]; then
            echo "$kernel: $count registers in $threads threads" >&2
            exit 1
        fi
        echo "    { name = \"$kernel\", threads = $threads, registers = $count, spills = 0 },"
    done < <(join <(entries "$out/$name.ptx" | sort) "$out/registers")
    echo "]"
done >>"$out/manifest.toml"

if [ "${1:-}" = --check ]; then
    for file in "$out"/*.ptx "$out/manifest.toml"; do
        cmp "$file" "ptx/sm_53/$(basename "$file")"
    done
    echo "kernels/ptx/sm_53 is what the kernels compile to"
else
    mkdir -p ptx/sm_53
    rm -f ptx/sm_53/*
    cp "$out"/*.ptx "$out/manifest.toml" ptx/sm_53/
fi
if [ -n "${CUBINS:-}" ]; then
    mkdir -p "$CUBINS"
    cp "$out"/*.cubin "$CUBINS/"
fi
