#!/usr/bin/env bash
# Fetches NVIDIA's assembler and disassembler of CUDA 11.2 into a folder: the oldest that Debian
# still has, and the nearest to the driver of the Jetson Nano. Tools to check with; none of this
# ships, nothing is installed, and the system's apt sources stay as they are.
#
#   kernels/get_ptxas.sh DIR      leaves DIR/bin/ptxas and DIR/bin/cuobjdump; 60 MB to download
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
apt=$dir/.apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$dir/bin"
cat >"$apt/parts/non-free.sources" <<'SOURCES'
Types: deb
URIs: http://deb.debian.org/debian
Suites: bullseye
Components: non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
options=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/parts"
    -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Architectures=amd64)
apt-get -qq "${options[@]}" update
(cd "$apt" && apt-get -qq "${options[@]}" download nvidia-cuda-toolkit:amd64)
dpkg -x "$apt"/nvidia-cuda-toolkit_*.deb "$apt/unpacked"
cp "$apt"/unpacked/usr/bin/{ptxas,cuobjdump,nvdisasm} "$dir/bin/"
rm -rf "$apt"
"$dir/bin/ptxas" --version | tail -n 2
