"""The kernel's files, below a root that tests replace, and what a sensor is. Knows no board.

A board of the Tegra family keeps its figures in sysfs and procfs; none of what is read here needs
root. Whatever is absent gives None: to say so is the caller's business.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.measure.machine import ROOT, read_text

__all__ = ["ROOT", "NumberFile", "OpenFile", "Sensor", "first_existing", "number_file"]
__all__ += ["read_number", "read_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """One number that can be read at any time."""

    name: str
    kind: str
    """power, clock, load, temperature, memory, throttle (a state: 0 is none) or events (a count
    since boot)."""
    unit: str
    read: Callable[[], float]
    """Raises OSError or ValueError once the sensor has gone."""
    max_hz: float = math.inf
    """Readings per second beyond which nothing new is read, or not worth its cost. Sensors of one
    rate are read together: their values are side by side."""


def read_number(path: Path) -> float | None:
    """Returns the number a file holds; None: absent, unreadable or no number."""
    text = read_text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def first_existing(root: Path, names: Sequence[str]) -> Path | None:
    """Returns the first of these paths below the root that is there."""
    return next((root / name for name in names if (root / name).exists()), None)


class OpenFile:
    """A file kept open: a reading is one system call and no path walk."""

    def __init__(self, path: Path) -> None:
        """Opens it; OSError if that is not allowed."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def start(self, size: int) -> bytes:
        """Returns the first bytes as they are now; OSError once what is behind them has gone."""
        return os.pread(self._descriptor, size, 0)

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


class NumberFile(OpenFile):
    """A file that holds one number."""

    def read(self) -> float:
        """Returns the number now; OSError or ValueError once the device behind it has gone."""
        return float(os.pread(self._descriptor, 64, 0))


def number_file(path: Path) -> NumberFile | None:
    """Returns a file that opens and reads as a number now; None: it does not."""
    try:
        file = NumberFile(path)
        file.read()
    except (OSError, ValueError):
        return None
    return file
