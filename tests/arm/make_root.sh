#!/usr/bin/env bash
# Makes FOLDER/python, which runs an aarch64 Python with ONNX Runtime under qemu-user. Needs Debian or
# Ubuntu on x86-64, pip and the network; no root. Python is Debian 12's 3.11: its archive does not
# have JetPack 6's 3.10.
set -euo pipefail
[ $# = 2 ] || { echo "usage: make_root.sh FOLDER PYTHON_WITH_PIP" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd) pip=$2
packages=(
  python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
  libc6 libgcc-s1 libstdc++6 zlib1g libssl3 libffi8 libexpat1 libbz2-1.0 liblzma5 libcrypt1
  python3.11-venv python3-pip-whl python3-setuptools-whl
  libuuid1 libncursesw6 libtinfo6 libreadline8 libsqlite3-0 libdb5.3 libnsl2 libtirpc3
)
# Newer releases of ONNX Runtime end in an illegal instruction under qemu 7.2.
wheels=(numpy==2.2.6 tokenizers==0.21.4 click==8.2.1 onnxruntime==1.20.1)

mkdir -p "$folder"/{apt/lists/partial,apt/archives/partial,debs/amd64,debs/arm64,root,qemu,wheels}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
printf 'deb [signed-by=%s] %s bookworm main\n' "$keyring" \
  "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$folder/apt/sources"
: >"$folder/apt/status"

# A state folder of its own: the machine's apt is neither read nor changed.
fetch() {
  local arch=$1 state="$folder/apt"
  shift
  local options=(
    -qq -o "Dir::State=$state" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state"
    -o "Dir::Etc::sourcelist=$state/sources" -o Dir::Etc::sourceparts=/nonexistent
    -o "APT::Sandbox::User=$(id -un)" -o "APT::Architecture=$arch" -o "APT::Architectures::=$arch"
  )
  apt-get "${options[@]}" update
  (cd "$folder/debs/$arch" && apt-get "${options[@]}" download "$@")
}
fetch arm64 "${packages[@]}"
fetch amd64 qemu-user-static
for file in "$folder"/debs/arm64/*.deb; do dpkg-deb -x "$file" "$folder/root"; done
for file in "$folder"/debs/amd64/*.deb; do dpkg-deb -x "$file" "$folder/qemu"; done

platforms=()
for glibc in 2_17 2_27 2_28; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
"$pip" -m pip download --quiet --no-deps --dest "$folder/wheels" "${platforms[@]}" \
  --python-version 311 --implementation cp --abi cp311 --abi abi3 --abi none \
  --only-binary :all: "${wheels[@]}"
site="$folder/root/usr/lib/python3/dist-packages"
mkdir -p "$site"
for wheel in "$folder"/wheels/*.whl; do "$pip" -m zipfile -e "$wheel" "$site"; done

# "$@" is for the script that is written.
# shellcheck disable=SC2016
printf '#!/bin/sh\nexec %q -L %q %q "$@"\n' "$folder/qemu/usr/bin/qemu-aarch64-static" \
  "$folder/root" "$folder/root/usr/bin/python3.11" >"$folder/python"
chmod +x "$folder/python"
