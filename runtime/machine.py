"""What a report must say of the machine it was made on. Reads files and package versions only."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from .engines.gpu import read_gpu
from .errors import DlmError

PACKAGES = (
    "dlm-edge", "numpy", "tokenizers", "onnxruntime", "tensorrt", "pycuda", "cuda-bindings",
)  # fmt: skip
MODEL_FILE = Path("/proc/device-tree/model")
"""A board's name, for example NVIDIA Jetson Orin Nano Engineering Reference Developer Kit."""
RELEASE_FILE = Path("/etc/nv_tegra_release")
"""L4T's release, in its first line."""


def package_versions() -> dict[str, str | None]:
    """Returns the versions of what decides about results; None: not installed as a package."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine_facts(model: Path = MODEL_FILE, release: Path = RELEASE_FILE) -> dict[str, Any]:
    """Returns hardware and system, as JSON; nothing that names a user or a host."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "board": _line(model),
        "l4t": _line(release),
        "cpus": os.cpu_count(),
        "memory_mib": _memory_mib(),
        "gpu": gpu_facts(),
    }


def gpu_facts() -> Mapping[str, Any]:
    """Returns the GPU's facts, or why there are none."""
    try:
        return asdict(read_gpu())
    except DlmError as error:
        return {"missing": str(error)}


def _line(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").split("\n")[0].strip(" \0") or None
    except OSError:
        return None


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (ValueError, OSError):
        return None
