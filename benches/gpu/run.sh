#!/usr/bin/env bash
# What a machine with an NVIDIA GPU is asked: every kernel against float64 by its own driver, the same
# bits twice, whole models, compute-sanitizer where there is one, and the benchmark on random weights
# in real shapes. Leaves benches/history/DATE-DEVICE.json, with the device's name.
#
#   benches/gpu/run.sh               builds and measures here
#   benches/gpu/run.sh pack FOLDER   builds what must travel to a machine without Rust
#   FOLDER/benches/gpu/run.sh        measures there
#
#   SHAPES="0.5b 1.5b 3b 7b"     random models to measure (tests/support/shapes.rs has them)
#   TESTS="cuda:: ..."           tests to run on the device
#   WATCHED="cuda:: ..."         those of them under compute-sanitizer: each kernel by itself
#   LIBCUDA=/path/libcuda.so.1   the driver's library; by default where the loader finds it
#   WORK=FOLDER                  models and logs; 10 GB for a 7B, by default target/gpu
#   OUT=FOLDER                   where the report goes
#   ROUNDS=5 PROMPT=512 GENERATE=128   of the benchmark
#   JETFORGE=, SUITE=            programs that are built already, also for pack
#
# No GPU has run this yet. `cargo test --test suite cuda_bench` runs it on the stand-in.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"

# The test program and the binary, built for release unless they are given.
build() {
    [ -z "${JETFORGE:-}" ] || [ -z "${SUITE:-}" ] || return 0
    cargo build --quiet --release --locked
    cargo test --quiet --release --locked --test suite --no-run
    JETFORGE=$root/target/release/jetforge
    SUITE=$(cargo test --release --locked --test suite --no-run 2>&1 |
        sed -n 's/.*(\(.*suite-[0-9a-f]*\)).*/\1/p' | tail -n 1)
}

if [ "${1:-}" = pack ]; then
    to=$(realpath -m "${2:?the folder to pack into}")
    build
    mkdir -p "$to/bin" "$to/tests" "$to/benches"
    cp "$JETFORGE" "$to/bin/jetforge"
    cp "$SUITE" "$to/bin/suite"
    cp -r kernels "$to/"
    cp -r tests/golden "$to/tests/"
    cp -r benches/gpu "$to/benches/"
    # Tests read their files where they were built; the program they are told.
    echo "$root" >"$to/bin/root"
    echo "packed into $to"
    exit
fi
if [ -x bin/suite ]; then
    JETFORGE=${JETFORGE:-$root/bin/jetforge} SUITE=${SUITE:-$root/bin/suite}
    built_at=$(cat bin/root)
    [ -e "$built_at" ] || { mkdir -p "$(dirname "$built_at")" && ln -s "$root" "$built_at"; }
else
    build
fi

work=${WORK:-target/gpu}
mkdir -p "$work" "${OUT:=benches/history}"
work=$(realpath "$work") OUT=$(realpath "$OUT")
libcuda=${LIBCUDA:-$(ldconfig -p 2>/dev/null | sed -n 's/.*libcuda\.so\.1 .*=> //p' | head -n 1)}
[ -n "$libcuda" ] || { echo "there is no libcuda.so.1 here; LIBCUDA names one" >&2 && exit 1; }
export JETFORGE_TEST_LIBCUDA=$libcuda JETFORGE_GPU_WORK=$work JETFORGE_GPU_OUT=$OUT
JETFORGE_TEST_PROGRAM=$(realpath "$JETFORGE")
export JETFORGE_TEST_PROGRAM
JETFORGE_GPU_DATE=$(date -u +%F)
export JETFORGE_GPU_DATE
library_path=$(dirname "$libcuda")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
read -ra tests <<<"${TESTS:-cuda:: cuda_attention:: cuda_engine:: cuda_lora:: cuda_logits:: \
cuda_prompts:: cuda_split::}"
read -ra watched <<<"${WATCHED:-cuda:: cuda_attention:: cuda_lora::each_row cuda_lora::a_row_has}"
rm -f "$work"/*.log "$work/steps.tsv" "$work/bench.jsonl"
failed=0

# Runs a step and notes how it ended: name, command.
step() {
    local name=$1 status=ok
    shift
    echo "== $name"
    if ! "$@" >"$work/$name.log" 2>&1; then
        status=failed failed=1
        tail -n 20 "$work/$name.log"
    fi
    printf '%s\t%s\n' "$name" "$status" >>"$work/steps.tsv"
}

program() {
    LD_LIBRARY_PATH=$library_path "$JETFORGE" "$@"
}

# The same answer twice, from two processes.
twice() {
    local first second
    first=$(program generate "a b c" -m "$1" -n 24 -c 256 --temp 0 --device cuda:0) &&
        second=$(program generate "a b c" -m "$1" -n 24 -c 256 --temp 0 --device cuda:0) &&
        [ "$first" = "$second" ]
}

bench() {
    program bench -m "$1" --device cuda:0 -p "${PROMPT:-512}" -n "${GENERATE:-128}" -d 0 --streams 1 \
        --quick -r "${ROUNDS:-5}" -o json >"$work/figures.jsonl" &&
        cat "$work/figures.jsonl" >>"$work/bench.jsonl"
}

# In one test each: a real device is not shared out as the stand-in is.
step tests "$SUITE" --test-threads 1 --nocapture "${tests[@]}"
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$SUITE" --test-threads 1 "${watched[@]}"
    else
        printf '%s\tabsent\n' "$tool" >>"$work/steps.tsv"
    fi
done
for shape in ${SHAPES:-0.5b 1.5b 3b 7b}; do
    export JETFORGE_GPU_SHAPE=$shape
    step "weights-$shape" "$SUITE" --ignored --exact cuda_bench::writes_a_model
    step "twice-$shape" twice "$work/$shape.gguf"
    step "bench-$shape" bench "$work/$shape.gguf"
    rm -f "$work/$shape.gguf"
done
"$SUITE" --ignored --exact cuda_bench::writes_the_report --nocapture |
    sed -n 's/.*\(\(wrote\|decode:\) .*\)/\1/p'
exit "$failed"
