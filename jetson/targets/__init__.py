"""Machines that bundles are made for: boards with their power modes, and CPUs. Data only.

`host` is the machine this runs on; what it can do is measured (`jetson/forecast/host.py`), not
listed here. `cpu` is any x86-64 or arm64 processor: bundles for it are planned with this machine's
figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ...runtime.errors import ConfigError
from .boards import BOARDS, MODULES
from .jetpack import JETPACKS, jetpack_lines, jetpack_of
from .types import JetPack, PowerMode, Target, normal_mode_name

__all__ = [
    "JETPACKS",
    "MODULES",
    "TARGETS",
    "JetPack",
    "PowerMode",
    "Target",
    "describe",
    "jetpack_lines",
    "jetpack_of",
    "normal_mode_name",
    "target",
]

_MEASURED = MappingProxyType({"rates": "a micro-benchmark on this machine, kept in the cache"})

CPU = Target(
    name="cpu",
    title="any CPU, through ONNX Runtime",
    kind="cpu",
    modes=MappingProxyType({}),
    default_mode="",
    sources=_MEASURED,
)
HOST = Target(
    name="host",
    title="this machine's CPU, measured",
    kind="cpu",
    modes=MappingProxyType({}),
    default_mode="",
    sources=_MEASURED,
)

TARGETS: Mapping[str, Target] = MappingProxyType({item.name: item for item in (CPU, HOST, *BOARDS)})
"""Every target by the name `--target` takes."""


def target(name: str) -> Target:
    """Returns a target; ConfigError listing all of them if there is none of this name."""
    if name not in TARGETS:
        raise ConfigError(f"target {name!r} is unknown; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def describe(item: Target, *, sources: bool = False) -> str:
    """Returns what `--target list` prints about one target: a line, and one per power mode."""
    lines = [f"{item.name:14} {item.title}"]
    if item.is_gpu:
        left = item.memory_mib - item.system_mib
        lines[0] += f": {left:,} MiB left of {item.memory_mib:,}, {item.bus_bits} bits"
    for mode in item.modes.values():
        cap = f"{mode.watts:g} W" if mode.watts else "no cap"
        first = " (default)" if mode.name == item.default_mode else ""
        lines.append(
            f"    {mode.name:11} {cap:>6}  {mode.num_sms:2} SMs at {mode.gpu_mhz:5.0f} MHz  "
            f"{mode.bandwidth_gb_s:5.1f} GB/s  {mode.fp16_tflops:5.1f} TFLOPS fp16  "
            f"{mode.int8_tops:5.1f} TOPS int8{first}"
        )
    if not sources:
        return "\n".join(lines)
    for fact, source in item.sources.items():
        lines.append(f"    {fact.replace('_', ' ')}: {source}")
    for source in dict.fromkeys(mode.source for mode in item.modes.values()):
        names = ", ".join(mode.name for mode in item.modes.values() if mode.source == source)
        lines.append(f"    modes {names}: {source}")
    return "\n".join(lines)
