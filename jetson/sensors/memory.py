"""What this process's memory is: resident now and at most, by kind, and what malloc handed out.

Linux counts; where it does not (another system), figures are absent and the report says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...runtime.engines.base import Accountable, EngineSet
from .sysfs import OpenFile, Sensor, read_text

MEMORY_HZ = 20.0
DEVICE_USED, ENGINE_ACCOUNT, MALLOC = "device used", "engine's account", "malloc"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Resident memory in MiB."""

    resident: float
    anonymous: float
    """Heap and buffers: what no file can give back."""
    file: float
    """Pages of mapped files: libraries, weights read from disk."""
    peak: float
    """Highest resident since the last reset."""


def process_memory(root: Path) -> ProcessMemory | None:
    """Reads this process's figures; None where there is no /proc."""
    text = read_text(root / "proc/self/status")
    if text is None:
        return None
    found = {name: int(kib) / 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if "VmRSS" not in found:
        return None
    return ProcessMemory(
        resident=found["VmRSS"],
        anonymous=found.get("RssAnon", 0.0),
        file=found.get("RssFile", 0.0) + found.get("RssShmem", 0.0),
        peak=found.get("VmHWM", found["VmRSS"]),
    )


def reset_peak(root: Path) -> bool:
    """Makes the kernel forget the peak until now; False where it does not."""
    try:
        (root / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class _Mallinfo2(ctypes.Structure):
    """glibc's struct mallinfo2 (2.33 and later), in bytes."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def malloc_reader() -> Sensor | None:
    """Returns a sensor of what malloc has handed out, mapped chunks included; None: no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _Mallinfo2

        def read() -> float:
            info = mallinfo2()
            return (info.uordblks + info.hblkhd) / _MIB

        return Sensor(name=MALLOC, kind="memory", unit="MiB", read=read, max_hz=MEMORY_HZ)
    return None


def engine_memory(engines: EngineSet) -> dict[str, float]:
    """Returns what an open engine holds in MiB, by name; to be asked from the thread that runs it.

    `device used` is the driver's count of device memory in use, by every program: on a board that
    is the whole system's memory. `engine's account` is the sum of what the engine allocated.
    """
    found: dict[str, float] = {}
    if engines.device is not None:
        free, total = engines.device.memory()
        found[DEVICE_USED] = (total - free) / _MIB
    if isinstance(engines, Accountable):
        found[ENGINE_ACCOUNT] = sum(engines.account().values()) / _MIB
    return found


def process_sensors(root: Path) -> Iterator[Sensor]:
    """Yields resident memory and malloc's, where they can be read."""
    with contextlib.suppress(OSError):
        yield _resident(root / "proc/self/statm")
    malloc = malloc_reader()
    if malloc:
        yield malloc


def _resident(path: Path) -> Sensor:
    file = OpenFile(path)
    page = os.sysconf("SC_PAGE_SIZE") / _MIB
    return Sensor(
        name="resident",
        kind="memory",
        unit="MiB",
        read=lambda: int(file.start(128).split()[1]) * page,
        max_hz=MEMORY_HZ,
    )
