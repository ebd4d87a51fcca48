#!/usr/bin/env bash
# Says whose work is linked into the program, under which terms, with the words that those terms want
# to travel with it.
#
#   jetpack/notices.sh TARGET     such as x86_64-unknown-linux-gnu
#
# The crates are those that cargo takes for that target, without those for building and tests; the
# words are the files that their packages bring. A text that many have is said once. Needs the sources
# that a build has fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2; }

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cargo tree --quiet --locked --edges normal --target "$1" --prefix none --format '{p}|{l}|{r}' |
    sed 's/ (\*)$//' | LC_ALL=C sort -u | grep -v '^jetforge ' >"$dir/crates"
cargo metadata --quiet --locked --format-version 1 --filter-platform "$1" |
    grep -o '"manifest_path":"[^"]*/Cargo.toml"' | sed 's/^[^:]*:"//; s|/Cargo.toml"$||' >"$dir/sources"

cat <<'END'
JetForge is linked with what is listed here, each under its own terms. The numbers name the texts
below. SQLite, inside libsqlite3-sys, is in the public domain. The Rust standard library is under MIT
or Apache-2.0, copyright the Rust Project contributors.

END
n_text=0
while IFS='|' read -r crate license home; do
    # `serde v1.0.0 (proc-macro)` lies in .../serde-1.0.0.
    name=${crate%% *} version=${crate#* v}
    source=$(awk -v end="/$name-${version%% *}" \
        'substr($0, length($0) - length(end) + 1) == end { print; exit }' "$dir/sources")
    [ -d "$source" ] && [ -n "$license" ] || { echo "no source or license of $crate" >&2 && exit 1; }
    texts=''
    while IFS= read -r text; do
        sum=$(tr -s '[:space:]' ' ' <"$text" | sha256sum | cut -c 1-64)
        if [ ! -e "$dir/$sum" ]; then
            n_text=$((n_text + 1))
            echo $n_text >"$dir/$sum"
            printf '\n==== %s ====\n\n' $n_text | cat - "$text" >>"$dir/texts"
        fi
        texts+=" $(cat "$dir/$sum")"
    done < <(find "$source" -maxdepth 1 -type f -iregex '.*/\(licen[sc]e\|copying\|notice\|copyright\).*' |
        LC_ALL=C sort)
    [ -n "$texts" ] || { echo "the package of $crate has no text of its license" >&2 && exit 1; }
    printf '%s %s\n    %s; %s\n    texts:%s\n' "$name" "${version%% *}" "$license" "$home" "$texts"
done <"$dir/crates"
cat "$dir/texts"
