#!/usr/bin/env bash
# Makes an SD card's image for a Jetson Nano out of NVIDIA's own files and our package.
#
#   jetpack/image.sh --bsp FILE --rootfs FILE --deb FILE --board BOARD [OPTION...]
#
#   --bsp FILE            jetson-210_linux_r32.7.x_aarch64.tbz2, the driver package
#   --rootfs FILE         tegra_linux_sample-root-filesystem_r32.7.x_aarch64.tbz2
#   --deb FILE            jetforge_*_arm64.deb, of jetpack/deb.sh
#   --board BOARD         nano-b01, nano-a02 or nano-2gb
#   --out FILE            the image, jetforge-BOARD.img by default
#   --supply 5w|10w|barrel   what feeds the board, 10w by default
#   --user NAME           who may log in, jetson by default
#   --ssh-key FILE        a public key for that user; without one a password is asked for
#   --bsp-sha256 HASH, --rootfs-sha256 HASH   what the files have to be, where jetpack/image/known
#                         does not say it
#   --work DIR            where it works, .cross/image by default; needs 20 GB
#   --keep-desktop        leaves the desktop in
#   --accept-license      NVIDIA's license was read and is accepted; else it is asked for
#   --write DEVICE        then writes the image to a card, after asking
#   --dry-run             checks everything and says what would be done
#
# NVIDIA's files are downloaded by the owner, who accepts their license with that; nothing of them is
# in this repository or may be passed on, and so is no image. Needs root, qemu-user-static, and what
# NVIDIA's tools need. docs/flashing.md leads through it.
set -euo pipefail
home=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "jetpack/image.sh: $1" >&2
    exit 1
}

bsp='' rootfs='' deb='' board='' out='' supply=10w user=jetson key='' bsp_hash='' rootfs_hash=''
work='' card='' keep_desktop=no accepted=no dry=no
while [ $# -gt 0 ]; do
    case $1 in
    --keep-desktop) keep_desktop=yes && shift && continue ;;
    --accept-license) accepted=yes && shift && continue ;;
    --dry-run) dry=yes && shift && continue ;;
    --bsp | --rootfs | --deb | --board | --out | --supply | --user | --ssh-key | --bsp-sha256 | \
        --rootfs-sha256 | --work | --write) [ $# -ge 2 ] || fail "$1 wants a value" ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    esac
    case $1 in
    --bsp) bsp=$2 ;;
    --rootfs) rootfs=$2 ;;
    --deb) deb=$2 ;;
    --board) board=$2 ;;
    --out) out=$2 ;;
    --supply) supply=$2 ;;
    --user) user=$2 ;;
    --ssh-key) key=$2 ;;
    --bsp-sha256) bsp_hash=$2 ;;
    --rootfs-sha256) rootfs_hash=$2 ;;
    --work) work=$2 ;;
    --write) card=$2 ;;
    esac
    shift 2
done

# What would be done is said; what is done is said too.
run() {
    echo "+ $*"
    [ "$dry" = yes ] || "$@"
}

step() {
    printf '\n== %s\n' "$1"
}

# A question whose answer has to be a certain word.
confirm() {
    local question=$1 word=$2 answer=''
    printf '%s\nType %s to go on: ' "$question" "$word"
    if [ "$dry" = yes ]; then
        echo "(not asked)"
        return
    fi
    read -r answer || true
    [ "$answer" = "$word" ] || fail "nothing was done"
}

# File $1 has to have the hash $2, or one that jetpack/image/known names for it.
check_hash() {
    local file=$1 wanted=$2 option=$3 name found
    name=$(basename "$file" | tr '[:upper:]' '[:lower:]')
    [ -n "$wanted" ] || wanted=$(awk -v name="$name" '$2 == name { print $1 }' \
        "$home/jetpack/image/known")
    found=$(sha256sum "$file" | cut -d ' ' -f 1)
    if [ -z "$wanted" ]; then
        fail "no hash is known of $name; this one has
    $found
compare it with what NVIDIA's page says, or with another download, and give it as $option"
    fi
    [ "$found" = "$wanted" ] || fail "$file has the hash
    $found, and should have
    $wanted; download it again"
    echo "$name is what it should be ($found)"
}

check_arguments() {
    local file
    for file in "$bsp" "$rootfs" "$deb"; do
        [ -n "$file" ] || fail "--bsp, --rootfs and --deb are all needed; see --help"
        [ -f "$file" ] || fail "$file is not there"
    done
    case $board in
    nano-b01) creator=(-b jetson-nano -r 300) ;;
    nano-a02) creator=(-b jetson-nano -r 200) ;;
    nano-2gb) creator=(-b jetson-nano-2gb-devkit) ;;
    *) fail "--board is nano-b01, nano-a02 or nano-2gb; docs/flashing.md says how to tell" ;;
    esac
    case $supply in
    5w | 10w | barrel) ;;
    *) fail "--supply is 5w, 10w or barrel" ;;
    esac
    [[ $user =~ ^[a-z][a-z0-9-]{0,30}$ ]] || fail "--user is a name of small letters and digits"
    [ -z "$key" ] || [ -f "$key" ] || fail "$key is not there"
    [ "$(dpkg-deb -f "$deb" Package Architecture | tr '\n' ' ')" = \
        "Package: jetforge Architecture: arm64 " ] || fail "$deb is no package of jetforge for arm64"
    [ "$dry" = yes ] || [ "$(id -u)" = 0 ] || fail "run it as root: it makes files of other users"
    out=${out:-jetforge-$board.img}
    work=${work:-$home/.cross/image}
}

# The chroot of the board's files; services do not start in it.
inside() {
    run chroot "$tegra/rootfs" /usr/bin/env DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"
}

unpack() {
    step "unpack NVIDIA's files"
    run rm -rf "$tegra"
    run mkdir -p "$work"
    run tar -C "$work" -xpf "$bsp"
    run tar -C "$tegra/rootfs" -xpf "$rootfs"
    if [ "$accepted" = no ]; then
        confirm "NVIDIA's license is on the page of the files, and beside them in $tegra.
Do you accept it?" yes
    fi
    step "apply NVIDIA's binaries"
    run "$tegra/apply_binaries.sh"
}

register_emulator() {
    local binfmt=/proc/sys/fs/binfmt_misc
    [ "$(uname -m)" != aarch64 ] || return 0
    [ -e $binfmt/qemu-aarch64 ] && return 0
    [ -e $binfmt/register ] || run mount -t binfmt_misc binfmt_misc $binfmt
    run sh -c "cat /usr/lib/binfmt.d/qemu-aarch64.conf >$binfmt/register"
}

install_package() {
    step "install the package"
    run install -m 755 "$home/jetpack/image/policy-rc.d" "$tegra/rootfs/usr/sbin/policy-rc.d"
    run install -m 644 "$deb" "$tegra/rootfs/root/jetforge.deb"
    inside dpkg -i /root/jetforge.deb
    run rm "$tegra/rootfs/root/jetforge.deb"
    run install -D -m 755 "$home/jetpack/image/prepare-card" \
        "$tegra/rootfs/usr/lib/jetforge/prepare-card"
    run install -m 644 "$home/jetpack/image/jetforge-card.service" \
        "$tegra/rootfs/etc/systemd/system/jetforge-card.service"
    inside systemctl enable jetforge-card.service
    run sh -c "printf '[power]\nsupply = \"%s\"\n' '$supply' \
        >'$tegra/rootfs/etc/jetforge/config.d/05-supply.toml'"
    if [ "$supply" = 5w ]; then
        # NVIDIA's own tool, too, starts in its 5 W mode.
        run sed -i 's/< PM_CONFIG DEFAULT=0 >/< PM_CONFIG DEFAULT=1 >/' \
            "$tegra/rootfs/etc/nvpmodel.conf"
    fi
}

# What a board without a screen does not need; NVIDIA's packages and the way in stay.
remove_desktop() {
    [ "$keep_desktop" = no ] || return 0
    step "remove the desktop"
    run cp "$home/jetpack/image/desktop" "$home/jetpack/image/stays" "$tegra/rootfs/root/"
    inside sh -c 'dpkg-query -W -f "\${Status} \${Package}\n" | sed -n "s/.* ok installed //p" |
        grep -xEf /root/stays >/root/stayed; xargs -r apt-mark manual </root/stayed >/dev/null'
    inside sh -c 'dpkg-query -W -f "\${Package}\n" | grep -xEf /root/desktop |
        xargs -r apt-get -y -q purge --auto-remove && apt-get clean'
    # By the list from before: dpkg no longer knows what was purged.
    inside sh -c 'for package in $(cat /root/stayed); do
        dpkg -s $package | grep -q "^Status: .* installed" || exit 1; done'
    run rm "$tegra/rootfs/root/desktop" "$tegra/rootfs/root/stays" "$tegra/rootfs/root/stayed"
    inside systemctl set-default multi-user.target
}

make_user() {
    step "make the user $user"
    local password=''
    if [ -n "$key" ]; then
        # Nobody logs in with it: it is forgotten here and locked below.
        password=$(head -c 18 /dev/urandom | base64)
    elif [ "$dry" = no ]; then
        printf 'Password for %s: ' "$user"
        read -rs password && echo
        [ ${#password} -ge 8 ] || fail "a password has 8 characters at least"
    fi
    echo "+ l4t_create_default_user.sh -u $user -n jetson --accept-license"
    [ "$dry" = yes ] || "$tegra/tools/l4t_create_default_user.sh" -u "$user" -p "$password" \
        -n jetson --accept-license
    if [ -n "$key" ]; then
        run install -d -m 700 "$tegra/rootfs/home/$user/.ssh"
        run install -m 600 "$key" "$tegra/rootfs/home/$user/.ssh/authorized_keys"
        inside chown -R "$user:$user" "/home/$user/.ssh"
        inside usermod -L "$user"
        # Who has no password is asked for none.
        run sh -c "umask 227 && echo '$user ALL=(ALL) NOPASSWD: ALL' \
            >'$tegra/rootfs/etc/sudoers.d/jetforge-owner'"
    fi
    inside usermod -a -G jetforge "$user"
}

check_result() {
    step "look at the result"
    inside dpkg-query -W jetforge
    inside jetforge --version
    inside systemctl is-enabled jetforge.service jetforge-first-boot.service jetforge-power.socket
    # Made at the first boot, each board its own: jetpack/image/prepare-card and first-boot.
    run rm -f "$tegra/rootfs/usr/sbin/policy-rc.d"
    run sh -c "rm -f '$tegra'/rootfs/etc/ssh/ssh_host_*_key*"
    run sh -c "[ ! -e '$tegra/rootfs/etc/machine-id' ] || : >'$tegra/rootfs/etc/machine-id'"
    run rm -f "$tegra/rootfs/var/lib/jetforge-root/first-boot.done"
}

make_image() {
    step "make the image"
    run env -C "$work" "$tegra/tools/jetson-disk-image-creator.sh" -o "$work/sd.img" "${creator[@]}"
    run mv "$work/sd.img" "$out"
    [ "$dry" = yes ] || (sha256sum "$out" | tee "$out.sha256")
}

write_card() {
    [ -n "$card" ] || return 0
    step "write the card"
    if [ "$dry" = no ]; then
        [ -b "$card" ] || fail "$card is no block device"
        [ "$(lsblk -dno TYPE "$card")" = disk ] || fail "$card is a part of a disk; name the disk"
        [ "$(lsblk -dno RM "$card")" = 1 ] || fail "$card is not removable; write it by hand"
        ! lsblk -no MOUNTPOINT "$card" | grep -q . || fail "$card is in use: unmount it first"
        lsblk -o NAME,SIZE,MODEL "$card"
    fi
    confirm "Everything on $card will be gone." "$card"
    run dd if="$out" of="$card" bs=4M conv=fsync status=progress
}

check_arguments
tegra=$work/Linux_for_Tegra
step "check the files"
check_hash "$bsp" "$bsp_hash" --bsp-sha256
check_hash "$rootfs" "$rootfs_hash" --rootfs-sha256
unpack
register_emulator
install_package
remove_desktop
make_user
check_result
make_image
write_card
step "done"
echo "The image is $out. On the board's first boot look at /etc/jetforge/first-boot.txt as root."
