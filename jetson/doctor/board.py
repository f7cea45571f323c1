"""What a Jetson needs beside what every machine does. See `doctor.py`.

Sources: the table of JetPack releases in `targets/`; NvMap's limit on single allocations since L4T
36.4.7 (the fix of CVE-2025-33177) and its remedy, a larger CMA area, from reports of llama.cpp
(pull requests 23732 and 23747) and PyTorch (issue 185240).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ...runtime.errors import DeviceError, brief
from ...runtime.gpu.facts import read_gpu
from ..sensors.board import MachineFacts, release_at_least
from ..sensors.power import current_mode, list_modes
from ..sensors.sysfs import read_number, read_text
from ..targets import JetPack, jetpack_of
from .checks import Check, Run, check, probe, version_numbers

OLDEST_TENSORRT = (10, 3)
NVMAP_LIMIT_L4T = "36.4.7"
MIN_CMA_MIB = 900
_CUDA_VERSION = "usr/local/cuda/version.json"
_NVRTC = (
    "usr/local/cuda/lib64/libnvrtc.so*",
    "usr/local/cuda/targets/*/lib/libnvrtc.so*",
    "usr/lib/aarch64-linux-gnu/libnvrtc.so*",
)
_GPU_DEVFREQ = ("sys/class/devfreq/17000000.gpu", "sys/class/devfreq/17000000.ga10b")
_SETUP = "bash setup.sh  # from the wheel's dlm_edge/jetson/"


def board_checks(root: Path, machine: MachineFacts, run: Run) -> Iterator[Check]:
    """Yields everything that is asked of a board."""
    release = jetpack_of(machine.l4t) if machine.l4t else None
    yield Check(name="board", found=machine.model, needed="a Jetson Orin", state="info")
    yield _jetpack(machine, release)
    yield _driver()
    yield _device_nodes(root)
    yield _tensorrt(release, run)
    yield _toolkit(root, release)
    yield _nvrtc(root, release)
    yield _pycuda(run)
    yield _cuda_bindings(root, release, run)
    yield _swap(machine)
    yield _desktop(root)
    yield _power_mode(root)
    yield _clocks(root)
    yield _nvmap(root, machine)


def _jetpack(machine: MachineFacts, release: JetPack | None) -> Check:
    found = f"L4T {machine.l4t or 'unknown'}"
    good = False
    if release is not None:
        found = f"JetPack {release.version} ({found})"
        good = release.orin and version_numbers(release.tensorrt)[:2] >= OLDEST_TENSORRT
    return check(
        "JetPack",
        found,
        "6.1 or newer of the 6 line, or 7.2 and newer",
        good,
        "warn" if release is None else "fail",
        "sudo apt update && sudo apt dist-upgrade  # or flash a newer image with SDK Manager",
    )


def _driver() -> Check:
    try:
        gpu = read_gpu()
    except DeviceError as error:
        return check("GPU driver", brief(error, 120), "", False, "fail", "sudo reboot")
    version = f"CUDA {gpu.driver_version // 1000}.{gpu.driver_version % 1000 // 10}"
    return Check(
        name="GPU driver",
        found=f"{gpu.name}, compute capability {gpu.compute_capability}, {version}",
        needed="compute capability 8.7",
        state="ok",
    )


def _device_nodes(root: Path) -> Check:
    nodes = [path for path in (root / "dev/nvmap", root / "dev/nvhost-gpu") if path.exists()]
    closed = [path.name for path in nodes if not os.access(path, os.R_OK | os.W_OK)]
    found = f"no access to {', '.join(closed)}" if closed else ", ".join(p.name for p in nodes)
    return check(
        "device access",
        found or "no device node",
        "read and write, through the group video",
        bool(nodes) and not closed,
        "fail" if closed else "warn",
        'sudo usermod -aG video "$USER"  # then log in again',
    )


def _tensorrt(release: JetPack | None, run: Run) -> Check:
    good, said = probe(run, "tensorrt", "m.__version__")
    wanted = f"{release.tensorrt}, JetPack's own" if release else "JetPack's own, 10.3 or newer"
    if good and version_numbers(said)[:2] < OLDEST_TENSORRT:
        return check("TensorRT", said, wanted, False, "fail", "flash a newer JetPack")
    return check(
        "TensorRT",
        said,
        wanted,
        good,
        "fail",
        f"sudo apt install python3-libnvinfer && {_SETUP}",
    )


def cuda_version(root: Path) -> str | None:
    """Returns the toolkit's version, such as 12.6; None: there is none."""
    found = re.search(
        r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"(\d+\.\d+)', read_text(root / _CUDA_VERSION) or ""
    )
    return found[1] if found else None


def _toolkit(root: Path, release: JetPack | None) -> Check:
    version = cuda_version(root)
    wanted = release.cuda if release else "JetPack's"
    return check(
        "CUDA toolkit",
        version or "none at /usr/local/cuda",
        f"{wanted}: pycuda is built against it",
        version is not None and (release is None or version == release.cuda),
        "warn",
        f"sudo apt install cuda-toolkit-{wanted.replace('.', '-')}"
        if release
        else "sudo apt install nvidia-jetpack",
    )


def _nvrtc(root: Path, release: JetPack | None) -> Check:
    found = next((path for pattern in _NVRTC for path in sorted(root.glob(pattern))), None)
    version = (release.cuda if release else "12.6").replace(".", "-")
    return check(
        "NVRTC",
        f"/{found.relative_to(root)}" if found else "no libnvrtc",
        "compiles the sampling kernels on the board",
        found is not None,
        "fail",
        f"sudo apt install cuda-nvrtc-{version}",
    )


def _pycuda(run: Run) -> Check:
    good, said = probe(run, "pycuda.driver", "'.'.join(map(str, m.get_version()))")
    return check(
        "pycuda",
        f"there, for CUDA {said}" if good else said,
        "memory, the stream and modules; cuda-bindings can do its work",
        good,
        "warn",
        _SETUP,
    )


def _cuda_bindings(root: Path, release: JetPack | None, run: Run) -> Check:
    good, said = probe(
        run, "cuda.bindings", "__import__('importlib.metadata').metadata.version('cuda-bindings')"
    )
    version = cuda_version(root) or (release.cuda if release else "")
    major = version.partition(".")[0]
    fits = good and (not major or said.split(".")[0] == major)
    wanted = f"{major}.x" if major else "of the toolkit's major version"
    return check(
        "cuda-bindings",
        said,
        f"{wanted}: NVRTC and CUDA graphs",
        fits,
        "fail",
        f"pip install 'cuda-bindings=={major or '12'}.*'",
    )


def _swap(machine: MachineFacts) -> Check:
    return check(
        "swap",
        f"{machine.swap_mib:.0f} MiB",
        "some for building plans; running needs none",
        machine.swap_mib >= 1024,
        "warn",
        "sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
        "sudo swapon /swapfile",
    )


def _desktop(root: Path) -> Check:
    link = root / "etc/systemd/system/default.target"
    try:
        target = os.readlink(link)
    except OSError:
        target = ""
    graphical = "graphical" in target
    return check(
        "desktop",
        "started at boot" if graphical else "not started at boot",
        "none: it takes 100 to 200 MiB of the GPU's memory",
        not graphical,
        "warn",
        "sudo systemctl set-default multi-user.target && sudo reboot",
    )


def _power_mode(root: Path) -> Check:
    mode, modes = current_mode(root), list_modes(root)
    by_name = {mode.name: mode for mode in modes}
    best = by_name.get("25W") or by_name.get("MAXN_SUPER") or by_name.get("MAXN")
    slow = mode is not None and mode.name.upper() in ("7W", "10W", "15W") and best is not None
    return check(
        "power mode",
        mode.name if mode else "unknown",
        "25W does most tokens per joule, MAXN_SUPER most per second",
        mode is not None and not slow,
        "warn" if slow else "info",
        f"sudo nvpmodel -m {best.number}" if best else "sudo nvpmodel -q",
    )


def _clocks(root: Path) -> Check:
    folder = next((root / name for name in _GPU_DEVFREQ if (root / name).exists()), None)
    low = read_number(folder / "min_freq") if folder else None
    high = read_number(folder / "max_freq") if folder else None
    if not low or not high:
        return Check(name="clocks", found="unknown", needed="", state="info")
    pinned = low == high
    return Check(
        name="clocks",
        found=f"GPU {low / 1e6:.0f} to {high / 1e6:.0f} MHz" + (", pinned" if pinned else ""),
        needed="pinned only to compare measurements",
        state="ok" if pinned else "info",
        remedy="" if pinned else "sudo jetson_clocks  # until the next boot",
    )


def _nvmap(root: Path, machine: MachineFacts) -> Check:
    line = read_text(root / "proc/cmdline") or ""
    found = re.search(r"\bcma=(\d+)([MG])", line)
    size = int(found[1]) * (1024 if found[2] == "G" else 1) if found else 0
    affected = machine.l4t is None or release_at_least(machine.l4t, NVMAP_LIMIT_L4T)
    return check(
        "NvMap",
        f"cma={size}M" if size else "no cma= on the kernel's command line",
        f"cma=950M since L4T {NVMAP_LIMIT_L4T}: large single allocations may fail else (reported "
        "at 1,025 MiB; 256 is our margin)"
        if affected
        else f"nothing before L4T {NVMAP_LIMIT_L4T}",
        not affected or size >= MIN_CMA_MIB,
        "warn",
        "sudo sed -i '/^ *APPEND/ s/$/ cma=950M/' /boot/extlinux/extlinux.conf && sudo reboot",
    )
