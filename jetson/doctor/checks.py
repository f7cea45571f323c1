"""What every machine needs: Python, an engine for the CPU, memory, disk. See `doctor.py`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.cache import REMEDY, cache_root
from ...runtime.errors import BundleError, brief
from ...runtime.files import free_bytes
from ...runtime.measure.machine import read_meminfo
from ..sensors.board import MachineFacts
from ..sensors.power import find_rails

MIN_FREE_MIB = 1024
MIN_DISK_GIB = 2.0
Run = Callable[[Sequence[str]], tuple[int, str]]
"""Runs a command; returns its exit status and what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    needed: str
    state: str
    """ok, info (nothing to do), warn (it runs, but not at its best) or fail (it does not run)."""
    remedy: str = ""
    """The command that mends it; empty: nothing to mend."""


def check(name: str, found: str, needed: str, good: bool, bad: str, remedy: str) -> Check:
    """Makes a line: ok without a remedy if good, else in the state `bad`."""
    state, remedy = ("ok", "") if good else (bad, remedy)
    return Check(name=name, found=found, needed=needed, state=state, remedy=remedy)


def version_numbers(text: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: 10.3.0.30 -> (10, 3, 0, 30)."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def probe(run: Run, module: str, expression: str) -> tuple[bool, str]:
    """Imports a module in a process of its own; returns success and its version, or the reason."""
    status, said = run((sys.executable, "-c", f"import {module} as m; print({expression})"))
    last = said.splitlines()[-1] if said else f"it ended with status {status}"
    last = brief(last, 120)
    return status == 0, last if status == 0 else f"cannot be imported: {last}"


def common_checks(root: Path, machine: MachineFacts, run: Run) -> Iterator[Check]:
    """Yields what does not depend on the board."""
    yield _python(machine)
    yield _onnxruntime(machine, run)
    yield _memory(root, machine)
    yield _disk()
    yield _rails(root, machine)


def _python(machine: MachineFacts) -> Check:
    return check(
        "Python",
        f"{machine.python} ({sys.executable})",
        "3.10 or newer",
        version_numbers(machine.python) >= (3, 10),
        "fail",
        "sudo apt install python3.10 python3.10-venv",
    )


def _onnxruntime(machine: MachineFacts, run: Run) -> Check:
    good, last = probe(run, "onnxruntime", "m.__version__")
    return check(
        "ONNX Runtime",
        last,
        "the engine for the CPU" + (", beside TensorRT" if machine.is_jetson else ""),
        good,
        "warn" if machine.is_jetson else "fail",
        "pip install onnxruntime",
    )


def _memory(root: Path, machine: MachineFacts) -> Check:
    memory = read_meminfo(root)
    if "MemAvailable" not in memory:
        return Check(name="memory", found="unknown here", needed="", state="info")
    free, total = memory["MemAvailable"], memory["MemTotal"]
    remedy = (
        "sudo systemctl set-default multi-user.target && sudo reboot  # no desktop"
        if machine.is_jetson
        else "close other programs"
    )
    return check(
        "free memory",
        f"{free:.0f} of {total:.0f} MiB",
        f"{MIN_FREE_MIB} MiB for small models; dlm-export --target forecasts yours",
        free >= MIN_FREE_MIB,
        "warn",
        remedy,
    )


def _disk() -> Check:
    try:
        folder = cache_root()
    except BundleError as error:
        remedy = f"export XDG_CACHE_HOME=...  # {REMEDY}"
        return Check(
            name="disk", found=str(error), needed="a cache folder", state="fail", remedy=remedy
        )
    free = free_bytes(folder) / (1 << 30)
    return check(
        "disk",
        f"{free:.1f} GiB free at {folder}",
        f"{MIN_DISK_GIB:g} GiB for unpacked bundles and plans",
        free >= MIN_DISK_GIB,
        "warn",
        "dlm-run --clear-plans",
    )


def _rails(root: Path, machine: MachineFacts) -> Check:
    rails = [sensor.name for sensor in find_rails(root)]
    if rails:
        return Check(name="power sensors", found=", ".join(rails), needed="", state="ok")
    tegrastats = shutil.which("tegrastats") is not None
    return Check(
        name="power sensors",
        found="none in sysfs" + (", tegrastats instead" if tegrastats else ""),
        needed="for tokens per joule only",
        state="info" if tegrastats or not machine.is_jetson else "warn",
        remedy="" if not machine.is_jetson or tegrastats else "sudo apt install nvidia-l4t-tools",
    )
