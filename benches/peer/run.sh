#!/usr/bin/env bash
# The comparison with llama.cpp from nothing, in one command: builds both programs, makes the models
# (random weights in real shapes, tests/tools/mkmodel.py) and prints the table.
#
#   benches/peer/run.sh [OPTIONS OF table.py]     as --threads 1,2 --rounds 5 --generate 128@0,64@2048
#
#   MODELS="tinyllama-1.1b/q4_k_m ..."   shape/type; shape/OURS=THEIRS where each has its own, as
#                                        tinyllama-1.1b/n4=q4_k_m: n3*, n4* are made by `quantize`
#   WORK=FOLDER                          llama.cpp, Python's packages, models (8 GB): target/peer
#   JETFORGE=, LLAMA_BENCH=, PYTHON=     programs that are there already; PYTHON has numpy and gguf
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(realpath -m "${WORK:-target/peer}")
of=tinyllama-1.1b
read -ra models <<<"${MODELS:-$of/q4_0 $of/q4_k_m $of/q3_k_m $of/n3_m=q3_k_m $of/n4=q4_k_m $of/q6_k \
$of/q8_0 qwen2.5-coder-0.5b/q4_k_m qwen2.5-coder-0.5b/n4=q4_k_m}"
mkdir -p "$work/models"

if [ -z "${LLAMA_BENCH:-}" ]; then
    benches/peer/build.sh "$work"
    LLAMA_BENCH=$work/bin/llama-bench
fi
if [ -z "${JETFORGE:-}" ]; then
    cargo build --quiet --release --locked
    JETFORGE=target/release/jetforge
fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$work/py/bin/python
    [ -x "$PYTHON" ] || python3 -m venv "$work/py"
    "$PYTHON" -m pip install --quiet numpy gguf
fi

# The file of a shape in a type; made unless it is there.
file_of() {
    local shape=$1 type=$2 path=$work/models/$1-$2.gguf
    if [ ! -s "$path" ]; then
        case $type in
        n[34]*)
            file_of "$shape" f16 >/dev/null
            "$JETFORGE" quantize "$work/models/$shape-f16.gguf" "$path" "${type^^}" >&2
            ;;
        *)
            "$PYTHON" tests/tools/mkmodel.py --preset "$shape" --quant "$type" --out "$path.part" >&2
            mv "$path.part" "$path"
            ;;
        esac
    fi
    echo "$path"
}

pairs=()
for model in "${models[@]}"; do
    shape=${model%%/*} types=${model#*/}
    ours=$(file_of "$shape" "${types%%=*}")
    theirs=$(file_of "$shape" "${types#*=}")
    pairs+=("$ours=$theirs")
done
python3 benches/peer/table.py --jetforge "$JETFORGE" --llama-bench "$LLAMA_BENCH" "$@" "${pairs[@]}"
