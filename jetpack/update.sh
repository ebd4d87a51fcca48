#!/usr/bin/env bash
# Makes an update of a binary that is built already: signed, in one file, for a stick.
#
#   jetpack/update.sh arm64 KEY [BINARY]   of .cross/jetforge, which jetpack/cross.sh builds
#   jetpack/update.sh amd64 KEY [BINARY]   of target/release/jetforge
#
#   OUT=DIR       where it goes, target/update by default
#   VERSION=V     in place of Cargo.toml's version with the commit's date and name
#   FROM=V        the oldest version that it can follow, any by default
#   SIGNER=FILE   the jetforge that signs, target/release/jetforge by default; it has to be of the
#                 same commit, because the version of the state store is its own
#
# KEY is a file of `jetforge update keygen`. Needs binutils.
set -euo pipefail
. "$(dirname "$0")/parts.sh"

fail() {
    echo "jetpack/update.sh: $1" >&2
    exit 1
}

[ $# -ge 2 ] || usage
key=$(readlink -f "$2")
[ $# -lt 3 ] || set -- "$1" "$2" "$(readlink -f "$3")"
cd "$(dirname "$0")/.."
signer=${SIGNER:-${CARGO_TARGET_DIR:-target}/release/jetforge}
case $1 in
arm64) binary=${3:-.cross/jetforge} target=aarch64-unknown-linux-gnu ;;
amd64) binary=${3:-${CARGO_TARGET_DIR:-target}/release/jetforge} target=x86_64-unknown-linux-gnu ;;
*) usage ;;
esac
for file in "$binary" "$signer" "$key"; do
    [ -f "$file" ] || fail "$file is not there"
done
version=$(version_of_commit)
glibc=$(newest_glibc "$binary")
[ -n "$glibc" ] || fail "$binary names no version of glibc"
out=${OUT:-target/update}
mkdir -p "$out"
file=$out/jetforge-$version-$1.update
"$signer" update sign "$binary" --key "$key" --version "$version" --glibc "$glibc" \
    --target "$target" --upgrades-from "${FROM:-0}" --output "$file"
ls -l "$file"
