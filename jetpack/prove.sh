#!/usr/bin/env bash
# The package on an emulated board: a Debian with systemd for arm64, on a Cortex-A57 with 2 GB and
# cgroups as JetPack has them, without any network but loopback.
#
#   jetpack/prove.sh PACKAGE.deb [CUTS]    CUTS power cuts during writes, 20 by default
#
#   SEED=N       another life of the cuts, 1 by default
#   WORK=DIR     where the system is kept between runs, .cross/prove by default
#   SUITE=S      Debian's release: bookworm (systemd 252, the default) or bullseye (247)
#   MODEL=FILE   a GGUF of half a billion weights: how much memory the idle service has with it
#
# Needs root and 3 GB, no KVM and no network of its own. It prints what was held and what was not, and
# ends with 1 if anything was not. Boots of the machine, in order:
#
#   install   the package goes in; ready, keys, an answer, kill -9, a thread that stands still, doctor
#   start     from power-on to the first token; what the package sets is in force
#   weights   MODEL is served, and what is resident then is stated; without MODEL there is no such boot
#   trial     a signed update is started, and the machine killed while it is on trial
#   update    the trial goes on and is kept; two bad ones are given up; back by hand, and forth
#   cut       CUTS times: what was acknowledged in all lives before is there; jobs are written; the
#             machine is killed in the middle of it
#   end       a full disk, an upgrade and back, removal, purge
#
# The kill takes what the guest had not handed to its disk yet. What it had handed over stays, so this
# says nothing of a card that loses what it acknowledged; `cargo test store` imitates such a one.
set -euo pipefail
. "$(dirname "$0")/parts.sh"
cd "$(dirname "$0")/.."

deb=${1:-} n_cut=${2:-20} seed=${SEED:-1} suite=${SUITE:-bookworm} model=${MODEL:-}
[ -f "$deb" ] || usage
[ -z "$model" ] || [ -f "$model" ] || usage
work=$(mkdir -p "${WORK:-.cross/prove}" && cd "${WORK:-.cross/prove}" && pwd)
kernel=$work/kernel
cmdline="rw console=ttyAMA0 loglevel=4 systemd.show_status=0 panic=5"
# As on 18.04, whose systemd has cgroups of the first version.
cmdline+=" systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
boot_s_max=1500

fail() {
    echo "jetpack/prove.sh: $1" >&2
    exit 1
}

# Programs for arm64 start by themselves.
register_emulator() {
    local binfmt=/proc/sys/fs/binfmt_misc
    [ -e $binfmt/register ] || as_root mount -t binfmt_misc binfmt_misc $binfmt
    [ -e $binfmt/qemu-aarch64 ] ||
        as_root sh -c "cat /usr/lib/binfmt.d/qemu-aarch64.conf >$binfmt/register"
}

# A configured Debian without a kernel, as an archive.
make_root() {
    [ -s "$work/$suite.tar" ] && return
    local mirror
    # One of the two files is there.
    mirror=$(sed -n -e 's/^URIs: *//p' -e 's/^deb \(\[.*\] \)\?\(http[^ ]*\) .*/\2/p' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1) || true
    register_emulator
    as_root mmdebstrap --quiet --mode=root --arch=arm64 --variant=minbase \
        --include=systemd-sysv,udev,dbus,kmod,iproute2,procps,wget \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        "$suite" "$work/$suite.part.tar" "${mirror:?no mirror of Debian is known}"
    mv "$work/$suite.part.tar" "$work/$suite.tar"
}

# Debian's kernel beside it: installed inside, it would make its initial disk under emulation.
make_kernel() {
    [ -s "$kernel/vmlinuz" ] && return
    local name
    if ! dpkg --print-foreign-architectures | grep -qx arm64; then
        as_root dpkg --add-architecture arm64
        as_root apt-get update -qq
    fi
    name=$(apt-cache depends linux-image-arm64:arm64 |
        sed -n 's/.*Depends: \(linux-image-6[^:]*\).*/\1/p' | head -n 1)
    rm -rf "$kernel" && mkdir -p "$kernel/debs"
    (cd "$kernel/debs" && apt-get download -qq "$name:arm64" busybox-static:arm64 2>/dev/null)
    for name in "$kernel"/debs/*.deb; do
        dpkg -x "$name" "$kernel/unpacked"
    done
    cp "$kernel"/unpacked/bin/busybox "$kernel/"
    cp -a "$kernel/unpacked/lib/modules" "$kernel/"
    cp "$kernel"/unpacked/boot/vmlinuz-* "$kernel/vmlinuz"
    rm -rf "$kernel/unpacked" "$kernel/debs"
}

make_initrd() {
    [ -s "$kernel/initrd.gz" ] && return
    local dir module modules
    dir=$(mktemp -d)
    modules=$(echo "$kernel"/modules/*)
    mkdir -p "$dir"/{bin,mnt,proc,dev,m}
    cp "$kernel/busybox" "$dir/bin/" && ln -s busybox "$dir/bin/sh"
    local list="drivers/virtio/virtio_mmio drivers/block/virtio_blk lib/crc16 fs/mbcache
        fs/jbd2/jbd2 crypto/crc32c_generic fs/ext4/ext4"
    for module in $list; do
        cp "$modules/kernel/$module.ko" "$dir/m/"
    done
    cat >"$dir/init" <<'END'
#!/bin/sh
b=/bin/busybox
$b mount -t proc p /proc; $b mount -t devtmpfs d /dev
for m in virtio_mmio virtio_blk crc16 mbcache jbd2 crc32c_generic ext4; do $b insmod /m/$m.ko; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do $b usleep 100000; n=$((n+1)); done
# Which of the two disks comes first is the kernel's choice.
$b mount -t ext4 -o rw /dev/vda /mnt || $b mount -t ext4 -o rw /dev/vdb /mnt
$b umount /proc && $b mount --move /dev /mnt/dev && exec $b switch_root /mnt /lib/systemd/systemd
echo "initrd: no root"; exec $b sh
END
    chmod 755 "$dir/init"
    (cd "$dir" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1) >"$kernel/initrd.gz"
    rm -rf "$dir"
}

# The disk of the machine: Debian, the two packages, MODEL, and what asks the questions.
make_disk() {
    local root=$work/root unit n_mib=1792
    as_root rm -rf "$root" && mkdir -p "$root"
    as_root tar -C "$root" --exclude=./dev -xf "$work/$suite.tar"
    mkdir -p "$root/dev"
    install -m 755 jetpack/prove/guest.sh "$root/root/guest.sh"
    cp "$deb" "$root/root/jetforge.deb"
    newer_package "$deb" "$root/root/newer.deb"
    if [ -n "$model" ]; then
        cp "$model" "$root/root/weights.gguf"
        n_mib=$((n_mib + $(stat -Lc %s "$model") / 1048576 + 1))
    fi
    cat >"$root/etc/systemd/system/prove.service" <<'END'
[Unit]
Description=what jetpack/prove.sh asks
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/root/guest.sh
[Install]
WantedBy=default.target
END
    mkdir -p "$root/etc/systemd/system/default.target.wants"
    ln -sf ../prove.service "$root/etc/systemd/system/default.target.wants/"
    : >"$root/etc/machine-id"
    echo jetson >"$root/etc/hostname"
    : >"$root/etc/fstab"
    for unit in proc-sys-fs-binfmt_misc.automount systemd-binfmt.service apt-daily.timer \
        apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer systemd-timesyncd.service \
        serial-getty@ttyAMA0.service dev-ttyAMA0.device getty@tty1.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    rm -f "$work/disk.img"
    truncate -s "${n_mib}M" "$work/disk.img"
    as_root mke2fs -q -t ext4 -d "$root" "$work/disk.img"
    as_root rm -rf "$root"
}

# Starts the machine at a stage; its pid is in $machine, what it says in $work/STAGE.log.
start_machine() {
    local stage=$1
    log=$work/$stage.log
    { echo acknowledged && cat "$work/acknowledged"; } >"$work/acknowledged.img"
    truncate -s 1M "$work/acknowledged.img"
    : >"$log"
    qemu-system-aarch64 -M virt -cpu cortex-a57 -smp 2 -m 2048 -accel tcg,thread=multi \
        -nographic -no-reboot -nic none -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd.gz" \
        -drive "if=none,id=d,format=raw,cache=writeback,file=$work/disk.img" \
        -device virtio-blk-device,drive=d \
        -drive "if=none,id=a,format=raw,readonly=on,file=$work/acknowledged.img" \
        -device virtio-blk-device,drive=a \
        -append "$cmdline prove.stage=$stage" </dev/null >"$log" 2>&1 &
    machine=$!
}

# What the guest said so far; a line that was cut is none.
said() {
    head -n "$(wc -l <"$log")" "$log" | tr -d '\r' | grep -a '^T ' || true
}

# Waits for the machine to switch itself off.
finish() {
    local deadline=$((SECONDS + boot_s_max))
    while kill -0 "$machine" 2>/dev/null; do
        if [ $SECONDS -ge $deadline ]; then
            kill -9 "$machine"
            echo "T FAIL the machine did not end within $boot_s_max s" >>"$log"
        fi
        sleep 1
    done
    wait "$machine" || true
    said | sed -n 's/^T ack //p' >>"$work/acknowledged"
    said | tee -a "$work/said" | grep -v '^T ack ' || true
    said | grep -q '^T end' || { echo "T FAIL stage without an end" | tee -a "$work/said"; }
}

# Waits until the machine said a line that begins with $1 so often as $2; it may end before.
hear() {
    local deadline=$((SECONDS + boot_s_max))
    while [ "$(said | grep -c "^T $1")" -lt "$2" ]; do
        kill -0 "$machine" 2>/dev/null || break
        [ $SECONDS -lt $deadline ] || break
        sleep 0.1
    done
}

# Takes the power away, and keeps what was acknowledged.
pull_the_plug() {
    kill -9 "$machine" 2>/dev/null || true
    wait "$machine" 2>/dev/null || true
    said | sed -n 's/^T ack //p' >>"$work/acknowledged"
}

# Kills the machine after its nth acknowledgement and a bit; a seed makes every life another one.
cut() {
    local cut_idx=$1 n_ack wait_ms
    RANDOM=$((seed * 1000 + cut_idx))
    n_ack=$((1 + RANDOM % 20)) wait_ms=$((RANDOM % 500))
    start_machine cut
    hear 'ack ' $n_ack
    sleep "0.$(printf %03d $wait_ms)"
    pull_the_plug
    { said | grep -v '^T ack ' || true; } | sed "s/^T \(ok  \|FAIL\)/T \1 cut $cut_idx:/" |
        tee -a "$work/said"
    if [ "$(said | grep -c '^T ack ')" -lt $n_ack ]; then
        echo "T FAIL cut $cut_idx: it wrote nothing to be cut" | tee -a "$work/said"
    fi
}

# Kills the machine while an update is on trial.
cut_trial() {
    start_machine trial
    hear 'tried' 1
    pull_the_plug
    said | tee -a "$work/said" | grep -v '^T ack ' || true
    said | grep -q '^T tried' ||
        echo "T FAIL no update was on trial when the power went" | tee -a "$work/said"
}

install_missing mmdebstrap arch-test qemu-user-static qemu-system-arm e2fsprogs cpio
make_root
make_kernel
make_initrd
: >"$work/acknowledged"
: >"$work/said"
make_disk
echo "T date $(date -u +%Y-%m-%dT%H:%MZ), $(basename "$(readlink -f "$deb")"), Debian $suite"

start_machine install && finish
start_machine start && finish
first=$(said | sed -n 's/^T first token at uptime \(.*\)/\1/p')
echo "T power-on to first token: ${first:-never} s of the guest's clock, emulated"
if [ -n "$model" ]; then start_machine weights && finish; fi
cut_trial
start_machine update && finish
for ((i = 1; i <= n_cut; i++)); do
    cut "$i"
done
echo "T $n_cut power cuts, $(wc -l <"$work/acknowledged") jobs acknowledged, seed $seed"
start_machine end && finish

n_fail=$(grep -c '^T FAIL' "$work/said" || true)
echo "$(grep -c '^T ok' "$work/said") held, $n_fail not"
[ "$n_fail" = 0 ]
