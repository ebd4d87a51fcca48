#!/usr/bin/env bash
# Makes the Debian package of a binary that is built already.
#
#   jetpack/deb.sh arm64 [BINARY]   of .cross/jetforge, which jetpack/cross.sh builds
#   jetpack/deb.sh amd64 [BINARY]   of target/release/jetforge, which `cargo build --release` builds
#
#   OUT=DIR       where it goes, target/deb by default
#   VERSION=V     in place of Cargo.toml's version with the commit's date and name
#
# The package of arm64 is that of the appliance: it also brings the settings of the system that a
# board profits from (volatile journal, hardware watchdog, bounds on unwritten data, zram). That of
# amd64 is the service alone. Needs dpkg-dev, binutils, gzip, cargo for the notices of what is linked;
# for arm64 qemu-user-static, to have the program print its manual pages and completions. Compressed
# with xz: the dpkg of 18.04 has no zstd.
set -euo pipefail
. "$(dirname "$0")/parts.sh"
cd "$(dirname "$0")/.."

fail() {
    echo "jetpack/deb.sh: $1" >&2
    exit 1
}

case ${1:-} in
arm64) binary=${2:-.cross/jetforge} machine=AArch64 cpu=aarch64 ;;
amd64) binary=${2:-${CARGO_TARGET_DIR:-target}/release/jetforge} machine=X86-64 cpu=x86_64 ;;
*) usage ;;
esac
arch=$1
out=${OUT:-target/deb}
[ -x "$binary" ] || fail "$binary is not there; build it first"
readelf -h "$binary" | grep -q "Machine:.*$machine" || fail "$binary is not built for $arch"

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
version=$(version_of_commit)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

# Puts file $1 at $2 of the package, with mode $3.
put() {
    install -D -m "${3:-644}" "$1" "$root/$2"
}

# The program, on this machine whatever it is built for. With Debian's own arm64 C library
# installed, the cross library beside it must not be named: see jetpack/cross.sh.
program() {
    local library=(-L /usr/aarch64-linux-gnu)
    [ ! -e /lib/ld-linux-aarch64.so.1 ] || library=()
    case $arch-$(uname -m) in
    amd64-x86_64 | arm64-aarch64) "$root/usr/bin/jetforge" "$@" ;;
    arm64-*) qemu-aarch64-static -cpu cortex-a57 "${library[@]}" "$root/usr/bin/jetforge" "$@" ;;
    *) fail "a program for $arch does not run here" ;;
    esac
}

units() {
    local unit
    for unit in systemd/*.service systemd/*.socket systemd/*.path; do
        put "$unit" "lib/systemd/system/${unit##*/}"
    done
    put systemd/jetforge.sysusers usr/lib/sysusers.d/jetforge.conf
    put systemd/jetforge.tmpfiles usr/lib/tmpfiles.d/jetforge.conf
    put systemd/config.toml etc/jetforge/config.toml
    install -d -m 755 "$root/etc/jetforge/config.d" "$root/usr/lib/jetforge"
    # What an update compares itself with.
    echo "$version" >"$root/usr/lib/jetforge/version"
    [ "$arch" = arm64 ] || return 0
    put systemd/jetforge.sysctl usr/lib/sysctl.d/60-jetforge.conf
    put systemd/journald-jetforge.conf usr/lib/systemd/journald.conf.d/jetforge.conf
    put systemd/system-jetforge.conf usr/lib/systemd/system.conf.d/jetforge.conf
}

pages() {
    local page
    program man "$root/usr/share/man/man1"
    for page in "$root"/usr/share/man/man1/*.1; do
        gzip -9n "$page"
    done
    chmod 644 "$root"/usr/share/man/man1/*
    local bash=usr/share/bash-completion/completions zsh=usr/share/zsh/vendor-completions
    local fish=usr/share/fish/vendor_completions.d
    install -d -m 755 "$root/$bash" "$root/$zsh" "$root/$fish"
    program completions bash >"$root/$bash/jetforge"
    program completions zsh >"$root/$zsh/_jetforge"
    program completions fish >"$root/$fish/jetforge.fish"
    local doc=usr/share/doc/jetforge
    for page in docs/*.md docs/decisions/*.md; do
        put "$page" "$doc/${page#docs/}"
    done
    jetpack/notices.sh "$cpu-unknown-linux-gnu" | gzip -9n >"$root/$doc/third-party.txt.gz"
    {
        printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n'
        printf 'Files: *\nCopyright: the authors of JetForge\nLicense: MIT or Apache-2.0\n'
        printf 'Comment: what is linked has its own terms, see third-party.txt.gz\n\n'
        printf 'Files: models/default.gguf\nCopyright: the authors of JetForge\n'
        printf 'License: Apache-2.0\nComment: inside the program\n\n'
        printf 'License: MIT or Apache-2.0\n'
        sed 's/^$/./; s/^/ /' LICENSE-MIT
        printf ' .\n or Apache-2.0\n\nLicense: Apache-2.0\n'
        printf ' On Debian the Apache license, version 2.0, is /usr/share/common-licenses/Apache-2.0\n'
    } >"$root/$doc/copyright"
    printf 'jetforge (%s) stable; urgency=medium\n\n  * %s\n\n -- JetForge <root@localhost>  %s\n' \
        "$version" "Built from commit $(git rev-parse HEAD)." \
        "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$root/$doc/changelog.Debian.gz"
}

# What the program asks of the C library, as dependencies.
depends() {
    local needs
    needs="libc6 (>= $(newest_glibc "$binary"))"
    # No `grep -q`, whose early end would break the pipe.
    [ -z "$(readelf -d "$binary" | grep libgcc_s)" ] || needs+=", libgcc-s1 | libgcc1"
    # procps has the /bin/kill that tells the service to read its configuration again.
    echo "$needs, systemd (>= 237), passwd, procps"
}

control() {
    local script kib
    install -d -m 755 "$root/DEBIAN"
    for script in postinst prerm postrm; do
        sed "s/@ARCH@/$arch/" "jetpack/deb/$script" >"$root/DEBIAN/$script"
        chmod 755 "$root/DEBIAN/$script"
    done
    echo /etc/jetforge/config.toml >"$root/DEBIAN/conffiles"
    (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | LC_ALL=C sort |
        grep -v '^etc/' | xargs -d '\n' md5sum) >"$root/DEBIAN/md5sums"
    chmod 644 "$root/DEBIAN/conffiles" "$root/DEBIAN/md5sums"
    kib=$(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f 1)
    cat >"$root/DEBIAN/control" <<END
Package: jetforge
Version: $version
Architecture: $arch
Maintainer: JetForge <root@localhost>
Installed-Size: $kib
Depends: $(depends)
Recommends: avahi-daemon, ca-certificates
Section: net
Priority: optional
Description: code generation over HTTP, on a Jetson Nano and the PC beside it
 Runs language models of the GGUF format on the cores of this machine, and answers
 as OpenAI, llama.cpp, Anthropic, Ollama and Tabby do. A small model is built in.
 .
 The service jetforge.service listens on ports 8080 and 8888; whoever asks needs a
 key, which the first boot makes and writes to /etc/jetforge/first-boot.txt.
END
}

umask 022
put "$binary" usr/bin/jetforge 755
# The cross build leaves symbols in; dpkg's own way of stripping cannot be had for a foreign machine.
case $arch in
arm64) strip=aarch64-linux-gnu-strip ;;
*) strip='strip' ;;
esac
"$strip" --strip-all "$root/usr/bin/jetforge" 2>/dev/null || true
units
pages
control
mkdir -p "$out"
# Whoever takes "the package in this folder" is to find one.
rm -f "$out"/jetforge_*_"$arch".deb
file=$out/jetforge_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz -b "$root" "$file" >/dev/null
ln -sf "${file##*/}" "$out/jetforge_$arch.deb"
ls -l "$file"
