"""Which machine this is: board, JetPack, memory, power mode, versions. Reads, changes nothing."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.measure.machine import (
    board_model,
    cpu_name,
    package_versions,
    read_l4t,
    read_meminfo,
)
from ...runtime.process import usable_cores
from ..targets import MODULES, jetpack_of
from .power import current_mode
from .sysfs import ROOT, read_text

_COMPATIBLE = "proc/device-tree/compatible"
_PART = re.compile(r"p3\d{3}-\d{4}")
_PACKAGES = ("numpy", "onnxruntime", "tensorrt", "pycuda", "cuda-bindings", "tokenizers")
_BOARDS = (
    ("orin nano", (("orin-nano-4gb", 0, 6000), ("orin-nano", 6000, 1 << 40))),
    ("orin nx", (("orin-nx-8gb", 0, 12000), ("orin-nx", 12000, 1 << 40))),
    ("agx orin", (("agx-orin-32gb", 0, 45000), ("agx-orin", 45000, 1 << 40))),
)
"""Target by model and MemTotal in MiB, where the device tree names no module that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What is true of this machine whatever runs on it."""

    model: str
    """Board, or the CPU's name."""
    is_jetson: bool
    l4t: str | None
    """For example 36.4.7."""
    jetpack: str | None
    """None: not a Jetson, or a release of no known line."""
    cpu: str
    cores: int
    """That this process may use."""
    memory_mib: float
    """Total that the kernel manages."""
    swap_mib: float
    kernel: str
    python: str
    power_mode: str | None
    """None off a Jetson."""
    target: str
    """Name in the table of targets; `host` for what is in no table."""
    packages: Mapping[str, str]
    """Versions of what is installed among what matters here."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return {name: getattr(self, name) for name in self.__slots__}  # pyright: ignore


def read_machine(root: Path = ROOT) -> MachineFacts:
    """Looks at this machine; what cannot be read is empty or 0."""
    tree = board_model(root)
    l4t = read_l4t(root)
    release = jetpack_of(l4t) if l4t else None
    memory = read_meminfo(root)
    total = memory.get("MemTotal", 0.0)
    cpu = cpu_name(root)
    mode = current_mode(root)
    versions = package_versions(_PACKAGES)
    return MachineFacts(
        model=tree or cpu,
        is_jetson=l4t is not None or "jetson" in (tree or "").lower(),
        l4t=l4t,
        jetpack=release.version if release else None,
        cpu=cpu,
        cores=usable_cores(),
        memory_mib=total,
        swap_mib=memory.get("SwapTotal", 0.0),
        kernel=platform.release(),
        python=platform.python_version(),
        power_mode=mode.name if mode else None,
        target=target_of(tree or "", total, read_text(root / _COMPATIBLE) or ""),
        packages={name: found for name, found in versions.items() if found},
    )


def release_at_least(l4t: str, wanted: str) -> bool:
    """Returns whether a release is this one or newer, number by number."""
    first, second = ([int(part) for part in text.split(".")] for text in (l4t, wanted))
    return first >= second


def target_of(model: str, memory_mib: float, compatible: str = "") -> str:
    """Returns the target whose board this is; `host` for every other machine.

    Args:
        compatible: as the device tree has it: carrier board and module by part number.
    """
    for part in _PART.findall(compatible):
        if part in MODULES:
            return MODULES[part]
    for name, sizes in _BOARDS:
        if name in model.lower():
            return next(t for t, low, high in sizes if low <= memory_mib < high)
    return "host"
