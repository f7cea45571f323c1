"""What a report must say of the machine it was made on. Reads files and package versions only.

The one reader of the kernel's files that describe a machine: board, CPU, memory. They lie below a
root that tests replace; what is absent is None, empty or 0, and to say so is the caller's business.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import DlmError
from ..gpu.facts import read_gpu
from ..process import usable_cores

ROOT = Path("/")
PACKAGES = (
    "dlm-edge", "numpy", "tokenizers", "onnxruntime", "tensorrt", "pycuda", "cuda-bindings",
)  # fmt: skip
_MODEL = "proc/device-tree/model"
_RELEASE = "etc/nv_tegra_release"
_CPU_NAME = re.compile(r"^(?:model name|Model)\s*:\s*(.+)$", re.MULTILINE)
"""x86 kernels name the processor; some ARM ones the board."""


def read_text(path: Path) -> str | None:
    """Returns a file's text, stripped of the NUL that device-tree files end with; None: absent."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return None


def board_model(root: Path = ROOT) -> str | None:
    """Returns a board's name, for example NVIDIA Jetson Orin Nano Developer Kit; None elsewhere."""
    return read_text(root / _MODEL) or None


def read_l4t(root: Path = ROOT) -> str | None:
    """Returns the L4T release of a Jetson, such as 36.4.7; None elsewhere."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / _RELEASE) or "")
    return f"{found[1]}.{found[2]}" if found else None


def read_meminfo(root: Path = ROOT) -> dict[str, float]:
    """Returns /proc/meminfo in MiB by name; empty where there is none."""
    text = read_text(root / "proc/meminfo") or ""
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def cpu_name(root: Path = ROOT) -> str:
    """Returns the processor's name as the kernel has it; most ARM kernels give its kind only."""
    found = _CPU_NAME.search(read_text(root / "proc/cpuinfo") or "")
    return found[1].strip() if found else platform.processor() or platform.machine()


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Returns the versions of what decides about results; None: not installed as a package."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine_facts(root: Path = ROOT) -> dict[str, Any]:
    """Returns hardware and system, as JSON; nothing that names a user or a host."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "board": board_model(root),
        "l4t": read_l4t(root),
        "cpu": cpu_name(root),
        "cpus": usable_cores(),
        "memory_mib": round(read_meminfo(root).get("MemTotal", 0.0)) or None,
        "gpu": gpu_facts(),
    }


def gpu_facts() -> Mapping[str, Any]:
    """Returns the GPU's facts, or why there are none."""
    try:
        return asdict(read_gpu())
    except DlmError as error:
        return {"missing": str(error)}
