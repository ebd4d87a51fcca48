#!/usr/bin/env bash
# Files that stand in for NVIDIA's, so that jetpack/image.sh can be run whole without them.
#
#   jetpack/image/stand_in.sh ROOT.tar DIR
#
# ROOT.tar is a Debian for arm64, such as .cross/prove/bookworm.tar of jetpack/prove.sh. DIR gets the
# two archives under NVIDIA's names; their tools do what image.sh counts on and nothing else, and
# write down what they were called with, in the file that STAND_IN_CALLS names.
#
# The image has a table of partitions as NVIDIA's has: the root file system is number 1 and lies
# behind the others, which are small and empty here. Needs python3 and e2fsprogs.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2; }
root=$(readlink -f "$1") out=$(mkdir -p "$2" && cd "$2" && pwd)

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/Linux_for_Tegra"/{rootfs,tools}
cat >"$dir/Linux_for_Tegra/apply_binaries.sh" <<'END'
#!/bin/sh
# NVIDIA's puts drivers and firmware into rootfs/.
set -e
echo "apply_binaries.sh $*" >>"${STAND_IN_CALLS:-/dev/null}"
cd "$(dirname "$0")"
echo '# R32 (release), REVISION: 7.6, a stand-in' >rootfs/etc/nv_tegra_release
printf '< PM_CONFIG DEFAULT=0 >\n' >rootfs/etc/nvpmodel.conf
END
cat >"$dir/Linux_for_Tegra/tools/l4t_create_default_user.sh" <<'END'
#!/bin/sh
# NVIDIA's makes the user and leaves the questions of the first boot out.
set -e
echo "l4t_create_default_user.sh $*" >>"${STAND_IN_CALLS:-/dev/null}"
cd "$(dirname "$0")/.."
while [ $# -gt 0 ]; do
    case $1 in
    -u) user=$2 && shift 2 ;;
    -p) password=$2 && shift 2 ;;
    -n) echo "$2" >rootfs/etc/hostname && shift 2 ;;
    --accept-license) accepted=yes && shift ;;
    *) exit 2 ;;
    esac
done
[ "$accepted" = yes ] && [ -n "$password" ]
chroot rootfs useradd -m -s /bin/bash "$user"
echo "$user:$password" | chroot rootfs chpasswd
END
cat >"$dir/Linux_for_Tegra/tools/jetson-disk-image-creator.sh" <<'END'
#!/bin/sh
# NVIDIA's makes a disk with all partitions of the board.
set -e
echo "jetson-disk-image-creator.sh $*" >>"${STAND_IN_CALLS:-/dev/null}"
[ "$1" = -o ] && [ "$3" = -b ]
here=$(cd "$(dirname "$0")" && pwd)
rm -f "$2" "$2.root"
truncate -s "${STAND_IN_SIZE:-1536M}" "$2.root"
mke2fs -q -t ext4 -d "$here/../rootfs" "$2.root"
"$here/stand_in_disk.py" "$2.root" "$2"
rm "$2.root"
END
cp "$(dirname "$0")/stand_in_disk.py" "$dir/Linux_for_Tegra/tools/"
chmod 755 "$dir/Linux_for_Tegra/apply_binaries.sh" "$dir"/Linux_for_Tegra/tools/*
tar -C "$dir" -cf "$out/jetson-210_linux_r32.7.6_aarch64.tbz2" Linux_for_Tegra
cp "$root" "$out/tegra_linux_sample-root-filesystem_r32.7.6_aarch64.tbz2"
(cd "$out" && sha256sum jetson-210_* tegra_linux_*)
