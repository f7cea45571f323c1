#!/usr/bin/env bash
# Sets up dlm-edge on a Jetson, in a virtual environment of its own, next to JetPack's TensorRT.
# Needs no root: where a system package lacks, it says which command installs it, and stops.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash setup.sh [options]

Sets up dlm-edge on a Jetson with JetPack 6.1 or newer, or 7.2 and newer: a virtual environment with
JetPack's TensorRT, cuda-bindings and pycuda for the GPU, ONNX Runtime for the CPU, and the wheel.
Changes nothing outside the environment and asks for no root.

  --wheel FILE    the dlm_edge wheel (default: the newest dlm_edge-*.whl here or in dist/)
  --venv DIR      where the environment goes (default: ~/dlm-edge)
  --python FILE   the interpreter (default: python3)
  --cpu           the CPU's engine only, for any Linux machine
  --no-pycuda     leave pycuda out: it is compiled here, which takes some minutes
  --dry-run       print the commands and run none; off a board, those of JetPack 6
  -h, --help      this text
TEXT
}

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
run() {
  if [ "$dry_run" = yes ]; then printf '+ %s\n' "$*"; else "$@"; fi
}

wheel='' venv="$HOME/dlm-edge" python=python3 cpu=no with_pycuda=yes dry_run=no
while [ $# -gt 0 ]; do
  case "$1" in
    --wheel | --venv | --python)
      [ $# -gt 1 ] || { usage >&2; printf '\n' >&2; fail "$1 needs a value"; }
      case "$1" in --wheel) wheel=$2 ;; --venv) venv=$2 ;; --python) python=$2 ;; esac
      shift
      ;;
    --cpu) cpu=yes ;;
    --no-pycuda) with_pycuda=no ;;
    --dry-run) dry_run=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; printf '\n' >&2; fail "unknown option $1" ;;
  esac
  shift
done

# --- what is here ---------------------------------------------------------------------------------

command -v "$python" >/dev/null || fail "no $python here; name another with --python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$python is $("$python" --version 2>&1), Python 3.10 or newer is needed; name it with --python"

if [ -z "$wheel" ]; then
  # The newest by time: there may be several versions.
  for candidate in ./dlm_edge-*.whl dist/dlm_edge-*.whl; do
    if [ -e "$candidate" ] && { [ -z "$wheel" ] || [ "$candidate" -nt "$wheel" ]; }; then
      wheel=$candidate
    fi
  done
  [ -n "$wheel" ] || fail "no dlm_edge-*.whl here; build it with 'make wheel' on the desktop and name it with --wheel"
fi
[ -e "$wheel" ] || fail "there is no $wheel; name the wheel with --wheel"

cuda='' cuda_major='' tensorrt=''
if [ "$cpu" = no ] && [ "$dry_run" = yes ] && [ ! -e /etc/nv_tegra_release ]; then
  say "this is no Jetson: these are the commands of one with JetPack 6"
  cuda=/usr/local/cuda cuda_major=12 ours=3.10 tensorrt=/usr/lib/python3.10/dist-packages/tensorrt
elif [ "$cpu" = no ]; then
  [ -e /etc/nv_tegra_release ] ||
    fail "this is no Jetson (no /etc/nv_tegra_release); for the CPU's engine alone add --cpu"
  # The toolkit itself, not whatever nvcc stands on the path: a wrapper would lead pycuda astray.
  for candidate in /usr/local/cuda /usr/local/cuda-[0-9]*; do
    if [ -e "$candidate/include/cuda.h" ]; then cuda=$candidate; break; fi
  done
  [ -n "$cuda" ] || fail "no CUDA toolkit under /usr/local: sudo apt install cuda-toolkit"
  cuda_major=$("$cuda/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
  case "$cuda_major" in
    12 | 13) ;;
    *) fail "found CUDA '$cuda_major' in $cuda, wanted 12 (JetPack 6) or 13 (JetPack 7)" ;;
  esac
  # apt's python3-libnvinfer puts the bindings beside the system's Python, whatever venv asks.
  tensorrt=$(/usr/bin/python3 -c 'import os, tensorrt; print(os.path.dirname(tensorrt.__file__))' 2>/dev/null) ||
    fail "JetPack's TensorRT has no Python bindings here: sudo apt install python3-libnvinfer"
  system=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  ours=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ "$system" = "$ours" ] ||
    fail "JetPack's TensorRT is for Python $system, $python is $ours: use --python /usr/bin/python3"
fi

# --- the environment ------------------------------------------------------------------------------

say "environment in $venv"
if [ ! -x "$venv/bin/python" ]; then
  run "$python" -m venv "$venv" ||
    fail "$python cannot make environments: sudo apt install python3-venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)

# tokenizers' own dependency is a hub client, ONNX Runtime's are for its tools: neither is imported.
say "numpy, click, tokenizers, ONNX Runtime"
run "${pip[@]}" install 'numpy>=1.24' 'click>=8.2'
run "${pip[@]}" install --no-deps 'tokenizers>=0.20' onnxruntime
say "$(basename "$wheel")"
run "${pip[@]}" install --no-deps --force-reinstall "$wheel"

if [ "$cpu" = no ]; then
  say "TensorRT from $tensorrt"
  packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null ||
    printf '%s' "$venv/lib/python$ours/site-packages")
  # Links to this one package, not --system-site-packages: apt's numpy would come along otherwise.
  run ln -sfn "$tensorrt" "$packages/tensorrt"
  for information in "$(dirname "$tensorrt")"/tensorrt-*.dist-info "$(dirname "$tensorrt")"/tensorrt-*.egg-info; do
    if [ -e "$information" ]; then run ln -sfn "$information" "$packages/$(basename "$information")"; fi
  done

  say "cuda-bindings for CUDA $cuda_major"
  run "${pip[@]}" install "cuda-bindings==$cuda_major.*"
fi

# --- pycuda ---------------------------------------------------------------------------------------

# pip's own build of pycuda guesses the toolkit from nvcc's place and misses cuda.h; so it is named.
build_pycuda() {
  local folder driver=''
  for candidate in /usr/lib/aarch64-linux-gnu/nvidia /usr/lib/aarch64-linux-gnu/tegra \
    /usr/lib/aarch64-linux-gnu "$cuda"/lib64/stubs "$cuda"/targets/*/lib/stubs; do
    if [ -e "$candidate/libcuda.so" ]; then driver=$candidate; break; fi
  done
  [ -n "$driver" ] || [ "$dry_run" = yes ] || { say "no libcuda.so to link with"; return 1; }
  folder=$(mktemp -d) || return 1
  run "${pip[@]}" install 'setuptools>=77' wheel pytools mako platformdirs &&
    run "${pip[@]}" download --no-binary :all: --no-deps --no-build-isolation -d "$folder" pycuda &&
    if [ "$dry_run" = no ]; then
      tar -xzf "$folder"/pycuda-*.tar.gz -C "$folder" --strip-components=1 &&
        (
          cd "$folder" &&
            PATH="$cuda/bin:$PATH" "$venv/bin/python" configure.py --cuda-root="$cuda" \
              --no-cuda-enable-curand --cudadrv-lib-dir="$driver" >configure.log &&
            PATH="$cuda/bin:$PATH" MAKEFLAGS="-j$(nproc)" "${pip[@]}" install --no-build-isolation .
        )
    fi
  local status=$?
  rm -rf "$folder"
  return $status
}

if [ "$cpu" = no ] && [ "$with_pycuda" = yes ]; then
  if "$venv/bin/python" -c 'import pycuda.driver' 2>/dev/null; then
    say "pycuda is there"
  else
    say "pycuda: compiled here, some minutes"
    build_pycuda || say "WARNING: pycuda could not be built; cuda-bindings does its work alone"
  fi
fi

# --- proof ----------------------------------------------------------------------------------------

say "checking the machine (dlm-profile --doctor) and writing a first sentence (dlm-run)"
run "$venv/bin/dlm-profile" --doctor ||
  say "WARNING: the table above says what lacks, and the commands that mend it"
run "$venv/bin/dlm-run" "Once upon a time" --max-tokens 24
say "done; put the commands on your path with: source $venv/bin/activate"
