#!/usr/bin/env bash
# Builds the program for the board on a PC with Debian 12 and rustup: aarch64, Cortex-A57, glibc 2.27.
#
#   jetpack/cross.sh [--quick] [--bound] [--run] | --tools
#
#   --quick   without link-time optimisation, other people's crates hardly optimised: what it computes is
#             the same, it builds in half the time
#   --bound   then holds its 4-bit kernels to a static bound on that core, by llvm-mca
#   --run     then starts the result on an emulated Cortex-A57, and compares what the default model
#             writes there with what it writes on this machine, and NEON with plain Rust; and dot
#             products, which that core lacks, on an emulated Cortex-A76
#
#   --tools   only installs what is missing
#
# The program is .cross/jetforge; beside cargo's other files it lies with its symbols.
#
# Installs what is missing. The cross compiler is Debian's rustc-web, whose standard library for arm64
# lies in the same archive, so nothing is asked of rustup's servers; zig links, because it brings the
# symbols of glibc 2.27 for Rust and C alike, and Debian's own cross linker those of 2.36. Everything
# but Debian's packages and a rustup toolchain by the name of `debian-web` stays in .cross/.
set -euo pipefail
. "$(dirname "$0")/parts.sh"
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
glibc=2.27
prompt="write a quick sort example and print the sorted result"
cross=$PWD/.cross
binary=$cross/target/$target/release/jetforge

is_quick=no is_run=no is_bound=no is_tools=no
for option in "$@"; do
    case $option in
    --quick) is_quick=yes ;;
    --run) is_run=yes ;;
    --bound) is_bound=yes ;;
    --tools) is_tools=yes ;;
    *) usage ;;
    esac
done

fail() {
    echo "jetpack/cross.sh: $1" >&2
    exit 1
}

# The standard library for arm64, of the very version of the compiler.
unpack_std() {
    local package=libstd-rust-web-dev version
    version=$(dpkg-query -W -f '${Version}' rustc-web)
    [ "$(cat "$cross/std.version" 2>/dev/null)" != "$version" ] || return 0
    if ! dpkg --print-foreign-architectures | grep -qx arm64; then
        as_root dpkg --add-architecture arm64
        as_root apt-get update -qq
    fi
    rm -rf "$cross/std" "$cross/$package"_*.deb
    (cd "$cross" && apt-get download -qq "$package:arm64=$version")
    dpkg -x "$cross/$package"_*.deb "$cross/std"
    rm "$cross/$package"_*.deb
    echo "$version" >"$cross/std.version"
}

install_zig() {
    [ -x "$cross/py/bin/cargo-zigbuild" ] && return
    /usr/bin/python3 -m venv "$cross/py"
    "$cross/py/bin/pip" install -q ziglang==0.17.1 cargo-zigbuild==0.24.0
}

# Runs cargo for the board; the name of its first argument is a verb of cargo-zigbuild. Symbols stay:
# they name the kernels, in the mangling that says types.
board_cargo() {
    PATH="$cross/py/bin:$PATH" CARGO_TARGET_DIR="$cross/target" \
        CARGO_PROFILE_RELEASE_STRIP=none \
        RUSTFLAGS="--sysroot $cross/std/usr -C target-cpu=cortex-a57 -C symbol-mangling-version=v0" \
        cargo +debian-web "$@" --locked --release --target "$target.$glibc"
}

# Fails if the program asks for a symbol of a glibc that the board does not have.
check_symbols() {
    local versions newest
    versions=$(aarch64-linux-gnu-objdump -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -Vu)
    newest=$(tail -n 1 <<<"$versions")
    [ -n "$newest" ] || fail "objdump names no version of glibc"
    [ "$(printf '%s\nGLIBC_%s\n' "$newest" "$glibc" | sort -V | tail -n 1)" = "GLIBC_$glibc" ] ||
        fail "$binary needs $newest, and the board has glibc $glibc"
    echo "newest symbol version: $newest, at most GLIBC_$glibc as the board has"
    aarch64-linux-gnu-objdump -p "$binary" | awk '/NEEDED/ { printf "needs %s\n", $2 }'
}

# Fails if the program has instructions that the board's processor does not.
check_instructions() {
    local found
    found=$(aarch64-linux-gnu-objdump -d --no-show-raw-insn "$binary" | awk -f jetpack/instructions.awk)
    [ -z "$found" ] || fail "instructions that a Cortex-A57 does not have:"$'\n'"$found"
    echo "every instruction is one of ARMv8.0, or behind a question for it"
}

# The program on an emulated core: `emulated CORE PROGRAM...`. With Debian's own arm64 C library installed,
# the cross library beside it must not be named: two builds of glibc would mix, and threads never start.
emulated() {
    local library=(-L /usr/aarch64-linux-gnu)
    [ ! -e /lib/ld-linux-aarch64.so.1 ] || library=()
    qemu-aarch64-static -cpu "$1" "${library[@]}" "${@:2}"
}

# The default model writes the same text here and there, with each instruction set.
check_text() {
    local host=${CARGO_TARGET_DIR:-target}/debug/jetforge isa core
    cargo build --locked --quiet # the text does not depend on the profile
    "$host" generate "$prompt" >"$cross/text.x86_64" 2>"$cross/text.log"
    for isa in neon scalar dotprod; do
        core=cortex-a57
        [ "$isa" != dotprod ] || core=cortex-a76
        emulated "$core" "$binary" generate "$prompt" --isa "$isa" >"$cross/text.$isa" 2>>"$cross/text.log"
        cmp "$cross/text.x86_64" "$cross/text.$isa" || fail "the text of $isa differs"
        echo "$isa on the emulated $core writes the text that $(uname -m) does"
    done
    cat "$cross/text.neon"
}

mkdir -p "$cross"
# Debian's compiler, the linker's tools, the model of the core, and the emulator.
install_missing rustc-web cargo-web libc6-dev-arm64-cross binutils-aarch64-linux-gnu llvm \
    qemu-user-static python3-venv
unpack_std
install_zig
[ "$is_tools" = no ] || exit 0
rustup toolchain list | grep -q '^debian-web' || rustup toolchain link debian-web /usr
quick=()
if [ "$is_quick" = yes ]; then
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    quick=(--config 'profile.release.package."*".opt-level=1')
fi
board_cargo zigbuild "${quick[@]}"
check_symbols
check_instructions
aarch64-linux-gnu-strip --strip-all -o "$cross/jetforge" "$binary"
ls -l "$cross/jetforge"
if [ "$is_bound" = yes ]; then
    /usr/bin/python3 jetpack/neon_bound.py --all "$binary"
fi
if [ "$is_run" = yes ]; then
    check_text
    emulated cortex-a57 "$binary" doctor
fi
