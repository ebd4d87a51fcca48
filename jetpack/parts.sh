# shellcheck shell=bash
# What several scripts of this folder do alike. It is read by them and does nothing by itself.

# Shows the head of the script, which is its help.
usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Installs those of Debian's packages $@ that are missing.
install_missing() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}"
}

# Runs the script $0 once more with $@, in a mount namespace that ends with it.
in_own_mounts() {
    [ "${OWN_MOUNTS:-}" = yes ] || OWN_MOUNTS=yes exec unshare --mount "$0" "$@"
}

# A copy of this system in the folder $1/root, of which nothing stays; it may take $2.
copy_of_system() {
    mount -t tmpfs -o "size=$2" none "$1"
    mkdir "$1"/{upper,lower,root}
    mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/lower" "$1/root"
}

# The package $1 under a higher version, as $2.
newer_package() {
    local dir
    dir=$(mktemp -d)
    dpkg-deb -R "$1" "$dir/x"
    sed -i 's/^Version: .*/&.newer/' "$dir/x/DEBIAN/control"
    dpkg-deb --root-owner-group -Zgzip -z1 -b "$dir/x" "$2" >/dev/null
    rm -rf "$dir"
}

# The version of what is built of this commit, or VERSION.
version_of_commit() {
    local crate date
    crate=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    date=$(date -u -d "@$(git log -1 --format=%ct)" +%Y%m%d%H%M)
    echo "${VERSION:-$crate+$date.$(git rev-parse --short=8 HEAD)}"
}

# The newest version of glibc that the program $1 asks for.
newest_glibc() {
    readelf -V --wide "$1" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1 | cut -d _ -f 2
}
