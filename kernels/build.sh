#!/usr/bin/env bash
# Makes the PTX that ships out of the kernels, and checks it.
#
#   kernels/build.sh              writes kernels/ptx/{sm_53,sm_80}/*.ptx and manifest.toml
#   kernels/build.sh --check      builds again beside them and compares the bytes
#
# Files with `_mma_` in their names are for capability 8.0 and above, all others for 5.3. Both commands
# assemble every kernel: one that spills, or whose registers times threads are more than the 32,768 of a
# Jetson Nano's thread block, is refused, and so is PTX for 5.3 that a driver of CUDA 10.2 could not
# load. Needs clang++-19 (CLANG) and the tools of kernels/get_ptxas.sh (CUDA_TOOLS, by default
# target/cuda-tools). Seconds of work, and no CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C
clang=${CLANG:-clang++-19}
tools=${CUDA_TOOLS:-../target/cuda-tools}
flags=(-x cuda --cuda-device-only -nocudainc -nocudalib -nostdinc -std=c++17 -O3
    -ffp-contract=fast -Wall -Werror -Xclang -target-feature -Xclang)
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

# Compiles and checks a kernel file: name, architecture, version of PTX. Its part of the manifest.
build() {
    local name=$1 arch=$2 version=$3 ptx=$out/$2/$1.ptx kernel threads count
    # Without comments, which are half of the bytes.
    "$clang" "${flags[@]}" "+ptx${version/./}" "--cuda-gpu-arch=$arch" -S -o - "$name.cu" |
        sed '/^[[:space:]]*\/\//d' >"$ptx"
    grep -qx "\.version ${version/./\\.}" "$ptx" || { echo "$name: not PTX $version" >&2; exit 1; }
    grep -qx "\.target $arch" "$ptx" || { echo "$name: not for $arch" >&2; exit 1; }
    "$tools/bin/ptxas" -v "-arch=$arch" -O3 -o "$out/$name.cubin" "$ptx" 2>"$out/said" || {
        cat "$out/said" >&2
        exit 1
    }
    registers "$out/said" | sort >"$out/registers"
    # `join` drops what only one of them has, and with it a kernel that was never held to its limits.
    join <(entries "$ptx" | sort) "$out/registers" >"$out/kernels"
    if [ "$(grep -c '\.entry ' "$ptx")" != "$(wc -l <"$out/kernels")" ]; then
        echo "$name: a kernel without launch bounds, or without registers" >&2
        exit 1
    fi
    printf '\n[%s]\nsource = "%s"\nptx = "%s"\nkernels = [\n' "$name" \
        "$(sha256sum <"$name.cu" | cut -d' ' -f1)" "$(sha256sum <"$ptx" | cut -d' ' -f1)"
    while read -r kernel threads count; do
        if [ $((threads * count)) -gt $registers_max ]; then
            echo "$kernel: $count registers in $threads threads" >&2
            exit 1
        fi
        echo "    { name = \"$kernel\", threads = $threads, registers = $count, spills = 0 },"
    done <"$out/kernels"
    echo "]"
}

# The manifest of an architecture, and its PTX: architecture, version of PTX, kernel files.
build_all() {
    local arch=$1 version=$2 source
    shift 2
    mkdir "$out/$arch"
    {
        echo "# Written by kernels/build.sh. What was compiled, how, and what the assembler said of it."
        echo "compiler = \"$("$clang" --version | head -n 1)\""
        echo "flags = \"${flags[*]} +ptx${version/./} --cuda-gpu-arch=$arch\""
        echo "assembler = \"$("$tools/bin/ptxas" --version | tail -n 1)\""
        echo "headers = \"$(cat ./*.h | sha256sum | cut -d' ' -f1)\""
        for source in "$@"; do build "${source%.cu}" "$arch" "$version"; done
    } >"$out/$arch/manifest.toml"
}

old=() new=()
for source in *.cu; do
    case $source in
        canary_f32.cu) ;;
        *_mma_*.cu) new+=("$source") ;;
        *) old+=("$source") ;;
    esac
done
build_all sm_53 6.0 "${old[@]}"
build_all sm_80 7.0 "${new[@]}"

for arch in sm_53 sm_80; do
    if [ "${1:-}" = --check ]; then
        for file in "$out/$arch"/*; do
            cmp "$file" "ptx/$arch/$(basename "$file")"
        done
        echo "kernels/ptx/$arch is what the kernels compile to"
    else
        mkdir -p "ptx/$arch"
        rm -f "ptx/$arch"/*
        cp "$out/$arch"/* "ptx/$arch/"
    fi
done
if [ -n "${CUBINS:-}" ]; then
    mkdir -p "$CUBINS"
    cp "$out"/*.cubin "$CUBINS/"
fi
