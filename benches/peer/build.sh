#!/usr/bin/env bash
# Builds llama.cpp's llama-bench and llama-server for this machine, to be compared with.
#
#   benches/peer/build.sh [FOLDER]      default: target/peer
#
# The sources are those that the package llama-cpp-python ships, so a version has one name here and
# in docs/performance.md. Needs a C++ compiler and Python 3 with venv; everything else is fetched
# into FOLDER. The programs end up in FOLDER/bin.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=0.3.36
folder=$(realpath -m "${1:-target/peer}")
source=$folder/llama_cpp_python-$version/vendor/llama.cpp

mkdir -p "$folder"
if [ ! -x "$folder/py/bin/cmake" ]; then
    for python in python3 /usr/bin/python3; do # the first may lack pip
        "$python" -m venv --clear "$folder/py" && [ -x "$folder/py/bin/pip" ] && break
    done
    "$folder/py/bin/pip" install --quiet cmake ninja scikit-build-core
fi
if [ ! -d "$source" ]; then
    # Without isolation: pip would build cmake from its sources to read the version.
    "$folder/py/bin/pip" download --quiet --no-deps --no-build-isolation \
        --no-binary llama-cpp-python --dest "$folder" "llama-cpp-python==$version"
    tar -C "$folder" -xzf "$folder/llama_cpp_python-$version.tar.gz"
fi
# Its code for AMX ends in a segmentation fault where this compiler is Debian 12's.
flags=""
[ "$(uname -m)" = x86_64 ] && flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
PATH="$folder/py/bin:$PATH" cmake -S "$source" -B "$folder/build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
"$folder/py/bin/cmake" --build "$folder/build" --target llama-bench llama-server
ln -sfn build/bin "$folder/bin"
ls -l "$folder/bin/llama-bench" "$folder/bin/llama-server"
