"""What this process may use of the machine, and has used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

_MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD."""
_LARGE_BYTES = 1 << 20


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def return_freed_memory() -> None:
    """Has large blocks go back to the system when they are freed; changes nothing without glibc.

    glibc keeps what it has freed, up to blocks of 32 MiB, for later: what a session takes while it
    is opened (matrices as stored, and transposed) stayed with the process. Not beside PyTorch,
    whose tensors come and go at every operation.
    """
    if "torch" in sys.modules:
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def peak_rss_mib() -> float:
    """Returns this process's highest resident memory in MiB."""
    try:
        # Not getrusage, which on Linux also counts the process that started this one.
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
