#!/usr/bin/env bash
# How much memory the idle service holds with a model, and how much of a processor it takes: starts it
# on a free port of the loopback with a home of its own, lets it answer once, waits until it has been
# idle for a while, and prints what the kernel says.
#
#   jetpack/memory.sh MODEL.gguf [PROGRAM]    of target/release/jetforge by default
#
#   IDLE_S=N      how long it is idle, 40 s by default: longer than it takes to rest
#   OPTIONS=...   more options of `jetforge serve`, such as `-c 4096`
set -euo pipefail
. "$(dirname "$0")/parts.sh"

[ $# -ge 1 ] && [ -f "$1" ] || usage
model=$(readlink -f "$1")
program=$(readlink -f "${2:-$(dirname "$0")/../target/release/jetforge}")
dir=$(mktemp -d)
service=
trap '[ -z "$service" ] || kill "$service" 2>/dev/null || true; rm -rf "$dir"' EXIT
clean=(env -i "HOME=$dir" "PATH=$PATH" JETFORGE_ROLE=person)

# shellcheck disable=SC2086 # several options are several words
"${clean[@]}" "$program" serve --port 0 -m "$model" ${OPTIONS:-} >"$dir/out" 2>"$dir/said" &
service=$!
answer() {
    local url
    url=$(sed -n 's/^listening on //p' "$dir/out")
    [ -n "$url" ] && "${clean[@]}" "$program" client --url "$url" --raw -n 8 --prompt "fn main() {" \
        >"$dir/answer" 2>&1
}
until answer; do
    kill -0 "$service" 2>/dev/null || { cat "$dir/said" && exit 1; }
    sleep 0.2
done
# User and system time, in ticks.
ticks() { sed 's/.*) //' "/proc/$service/stat" | awk '{ print $12 + $13 }'; }
before=$(ticks)
sleep "${IDLE_S:-40}"
spent=$(($(ticks) - before))

# Of a line of /proc/PID/$1, in MiB.
mib() { awk -v key="$2:" '$1 == key { printf "%.0f", $2 / 1024 }' "/proc/$service/$1"; }

size=$(stat -c %s "$model")
echo "${model##*/}, $((size / 1048576)) MiB; $(sed -n 's/.*\(n_ctx=[0-9]* n_parallel=[0-9]*\).*/\1/p' \
    "$dir/said" | head -n 1)"
echo "resident       $(mib status VmRSS) MiB"
echo "  its own      $(mib status RssAnon) MiB"
echo "  of files     $(mib status RssFile) MiB, which the kernel may take back"
echo "proportional   $(mib smaps_rollup Pss) MiB"
echo "at most so far $(mib status VmHWM) MiB"
echo "processor      $((spent * 1000 / $(getconf CLK_TCK))) ms in the last ${IDLE_S:-40} s"
