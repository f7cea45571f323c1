"""What TensorRT says while it builds: errors kept for one-line messages, phases as one fraction.

Both classes derive from classes of the module that is handed in (`tensorrt` or `tensorrt_rtx`), so
they are made by functions. TensorRT calls them from threads of its own, and an exception that left
such a call would end the process; so none leaves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

MAX_MESSAGES = 200
"""Kept per build: the first errors explain the later ones."""


@cache
def process_logger(trt: Any) -> Any:
    """Returns the one logger of this process for a TensorRT module.

    TensorRT keeps the first logger that it is given for good, so there is one for all builds;
    `take` empties it.
    """

    class Log(trt.ILogger):
        """Keeps errors and warnings; prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT."""
            with contextlib.suppress(Exception):
                line = " ".join(str(msg).split())
                if int(severity) <= int(trt.ILogger.ERROR):
                    kept = self._errors
                elif int(severity) == int(trt.ILogger.WARNING):
                    kept = self._warnings
                else:
                    return
                if len(kept) < MAX_MESSAGES:
                    kept.append(line)

        def take(self) -> tuple[list[str], list[str]]:
            """Returns errors and warnings since the last call."""
            taken = (self._errors, self._warnings)
            self._errors, self._warnings = [], []
            return taken

    return Log()


class Phases:
    """Nested phases of a build as one fraction that never goes back."""

    def __init__(self) -> None:
        self._open: dict[str, list[Any]] = {}
        self.fraction = 0.0
        self.phase = ""

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase begins inside one step of its parent."""
        self._open[name] = [parent, max(num_steps, 1), 0]
        self.phase = name

    def step(self, name: str, step: int) -> None:
        """Step number `step` of a phase, counted from 0, is done."""
        if name in self._open:
            self._open[name][2] = step + 1
        # Inside the current step of every phase above it.
        current: str | None = name
        inside = 0.0
        while current in self._open:
            parent, num_steps, done = self._open[current]
            inside = min((done + inside) / num_steps, 1.0)
            current = parent
        self.fraction = max(self.fraction, inside)

    def finish(self, name: str) -> None:
        """A phase ends; the whole does when no phase is left."""
        self._open.pop(name, None)
        if not self._open:
            self.fraction = 1.0


def progress_monitor(
    trt: Any, report: Callable[[float, str], None], cancelled: threading.Event
) -> Any:
    """Returns an IProgressMonitor.

    Args:
        report: Gets the fraction done, 0 to 1, and the name of the phase.
        cancelled: Once set, TensorRT stops at its next step.
    """

    class Monitor(trt.IProgressMonitor):
        """Called by TensorRT, from any of its threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins."""
            with contextlib.suppress(Exception), self._lock:
                self._phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step is done; False stops the build."""
            with contextlib.suppress(Exception), self._lock:
                self._phases.step(phase_name, step)
                report(self._phases.fraction, self._phases.phase)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            """A phase ends."""
            with contextlib.suppress(Exception), self._lock:
                self._phases.finish(phase_name)

    return Monitor()
