#!/usr/bin/env bash
# Installs a package of this machine's architecture over a copy of this system that is thrown away,
# upgrades, removes and purges it there, and fails where something is missing, or left at the end.
#
#   jetpack/deb_check.sh PACKAGE.deb
#
# Needs root (an overlay in a mount namespace of its own), and systemd's tools, which need not run.
# Services do not start here: jetpack/boot_check.sh starts them in a container, and jetpack/prove.sh is
# for an emulated board.
set -euo pipefail

. "$(dirname "$0")/parts.sh"

if [ $# != 1 ] || [ ! -f "$1" ]; then usage; fi
deb=$(readlink -f "$1")
in_own_mounts "$deb"

failed=0
held() {
    if (eval "$2") >"$dir/out" 2>&1; then
        echo "ok   $1"
    else
        echo "FAIL $1"
        sed 's/^/     /' "$dir/out" | tail -n 20
        failed=1
    fi
}

# In this namespace alone.
dir=/mnt
copy_of_system "$dir" 50%
mount -t proc none "$dir/root/proc"
cp "$deb" "$dir/root/root/jetforge.deb"
newer_package "$deb" "$dir/root/root/newer.deb"

inside() { chroot "$dir/root" "$@"; }
as_service() { inside runuser -u jetforge -- env JETFORGE_ROLE=service jetforge "$@"; }
# Files of the package that are on the disk in the copy and not on this machine.
leftovers() {
    (cd "$dir/upper" && find . -iname '*jetforge*' ! -type c ! -path './root/*.deb')
}
# Not `grep -q`: its early end would be the failure of what writes to it.
says() { grep -- "$1" >/dev/null; }

if [ -n "$(find /var/lib/dpkg/info -name 'jetforge.*')" ]; then
    echo "jetforge is installed here: check it elsewhere" >&2
    exit 1
fi
# Small systems leave manual pages out.
held "it installs" "inside dpkg --path-include='/usr/share/*' -i /root/jetforge.deb"
held "the program starts" "inside jetforge --version"
held "its user cannot log in" "inside getent passwd jetforge | says '/usr/sbin/nologin\$'"
held "its user is in the group video" "inside id -nG jetforge | says video"
for place in /var/lib/jetforge /var/cache/jetforge /var/log/jetforge; do
    held "$place is the service's alone" \
        "[ \"\$(inside stat -c %U:%G:%a $place)\" = jetforge:jetforge:750 ]"
done
held "what root goes by is root's alone" \
    "[ \"\$(inside stat -c %U:%G:%a /var/lib/jetforge-root)\" = root:root:755 ]"
for unit in jetforge.service jetforge-first-boot.service jetforge-power.socket \
    jetforge-update.path; do
    held "$unit is switched on" "inside systemctl is-enabled $unit"
done
held "the configuration is read" \
    "as_service config show --changed | says /etc/jetforge/config.toml"
held "root's verbs are about the service" \
    "inside jetforge config show --changed | says /etc/jetforge/config.toml"
held "a key that root makes is one that the service reads" \
    "inside jetforge key create check && as_service key list | says check"
held "root keeps what there is and brings it back" "echo '# kept' >>$dir/root/etc/jetforge/config.toml &&
    inside jetforge backup /root/all && sed -i '/# kept/d' $dir/root/etc/jetforge/config.toml &&
    inside rm -r /var/lib/jetforge/keys.json && inside jetforge restore /root/all"
held "and the service reads it" \
    "as_service config show --changed && as_service key list | says check && as_service export"
held "nothing in the state is root's" \
    "left=\$(inside find /var/lib/jetforge ! -user jetforge); echo \"\$left\"; [ -z \"\$left\" ]"
inside rm -f /root/all
sed -i '/# kept/d' "$dir/root/etc/jetforge/config.toml"
held "the units verify" "inside systemd-analyze verify --man=no jetforge.service \
    jetforge-restore.service jetforge-first-boot.service jetforge-tune.service jetforge-power.socket \
    jetforge-update.path jetforge-update.service"
held "the unit starts the package's program" \
    "[ \"\$(inside readlink /var/lib/jetforge-update/current)\" = /usr/bin ]"
held "the package's version is known" "inside jetforge update status | says package"
held "there is a manual page of every verb" "[ \$(ls $dir/upper/usr/share/man/man1 | wc -l) -ge 25 ]"
held "a manual page has its parts" \
    "zcat $dir/upper/usr/share/man/man1/jetforge-serve.1.gz | says '^.SH SYNOPSIS'"
held "what is linked has its notices" \
    "zcat $dir/upper/usr/share/doc/jetforge/third-party.txt.gz | says '^rusqlite '"
held "bash completes it" "bash -n $dir/upper/usr/share/bash-completion/completions/jetforge"
held "what is installed is what was packed" "inside dpkg --verify jetforge"

echo '# mine' >>"$dir/root/etc/jetforge/config.toml"
echo kept >"$dir/root/var/lib/jetforge/kept"
inside systemctl disable jetforge-power.socket >/dev/null 2>&1
held "an upgrade goes in" "inside dpkg --force-confdef -i /root/newer.deb"
held "it kept the configuration" "says '# mine' <$dir/root/etc/jetforge/config.toml"
held "what was switched off is off" "! inside systemctl is-enabled jetforge-power.socket"
held "and back" "inside dpkg --force-confdef -i /root/jetforge.deb"
held "it goes" "inside dpkg -r jetforge"
held "with state and configuration left" \
    "[ -e $dir/root/var/lib/jetforge/kept ] && [ -e $dir/root/etc/jetforge/config.toml ]"
held "a purge goes" "inside dpkg -P jetforge"
held "and leaves nothing" "left=\$(leftovers); echo \"\$left\"; [ -z \"\$left\" ]"
held "no user, no group" "! inside getent passwd jetforge && ! inside getent group jetforge"
exit $failed
