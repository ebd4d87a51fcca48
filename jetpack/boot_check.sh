#!/usr/bin/env bash
# The package under a systemd that runs, in minutes: this system is booted in a container over a copy
# that is thrown away, with loopback alone, and jetpack/prove/guest.sh asks its questions there.
#
#   jetpack/boot_check.sh PACKAGE.deb
#
# Needs root, systemd-container, dbus, wget and perl. The kernel is this machine's, and limits of memory
# and tasks are not enforced in there; jetpack/prove.sh boots a whole emulated board instead.
set -euo pipefail

. "$(dirname "$0")/parts.sh"

if [ $# != 1 ] || [ ! -f "$1" ]; then usage; fi
deb=$(readlink -f "$1")
command -v systemd-nspawn >/dev/null || { echo "systemd-nspawn is not installed" && exit 2; }
in_own_mounts "$deb"
cd "$(dirname "$0")/.."

mount --make-rprivate /
# In this namespace alone; its end is the full disk's.
dir=/mnt
copy_of_system "$dir" 1500M
root=$dir/root
# What is built meanwhile, here and beside, has our name as well, and is nothing that the package left.
hidden=$(dirname "$PWD")
[ "$hidden" != / ] || hidden=$PWD
mount -t tmpfs none "$root$hidden"
install -m 755 jetpack/prove/guest.sh "$root/root/guest.sh"
cp "$deb" "$root/root/jetforge.deb"
newer_package "$deb" "$root/root/newer.deb"
: >"$root/etc/machine-id"
echo jetson >"$root/etc/hostname"
# In there nobody forbids services to start.
rm -f "$root/usr/sbin/policy-rc.d"
# Nothing of this system but what the service needs of one.
cat >"$root/etc/systemd/system/prove.service" <<'END'
[Unit]
DefaultDependencies=no
Requires=basic.target dbus.service
After=basic.target dbus.service
[Service]
Type=oneshot
Environment=PROVE_STAGE=container PROVE_OUT=/root/said
ExecStart=/root/guest.sh
END
# systemd-nspawn wants these where systemd does not run.
mount -t tmpfs none /run
mkdir -p /run/systemd/nspawn /run/lock
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=0 timeout 1500 systemd-nspawn -q -D "$root" --boot \
    --register=no --keep-unit --private-network --console=pipe \
    systemd.unit=prove.service </dev/null || true

[ -f "$root/root/said" ] || { echo "it did not boot" && exit 1; }
grep -v '^T ack ' "$root/root/said"
grep -q '^T end' "$root/root/said" || { echo "it did not come to its end" && exit 1; }
! grep -q '^T FAIL' "$root/root/said"
