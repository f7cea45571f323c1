"""How far long work is: a line redrawn on a terminal, elsewhere a line of its own now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_WIDTH = 30
_EVERY_S = 0.1
LINE_EVERY_S = 30.0
"""Seconds between lines where stderr is no terminal; shorter work says nothing there."""


class ProgressLine:
    """A bar with the time left, redrawn in place; without a terminal a line every half minute."""

    def __init__(self, out: TextIO | None = None) -> None:
        """Takes a stream; None: stderr."""
        self._out = sys.stderr if out is None else out
        self._live = self._out.isatty()
        self._begin: dict[str, float] = {}
        self._drawn_at = 0.0 if self._live else time.monotonic()
        self._what: str | None = None
        """What the line on the screen is about; None: there is no line."""

    def show(self, done: float, planned: float, what: str = "") -> None:
        """Draws how far a part is; ten times a second at most while it is the same part.

        Args:
            what: the part's name; each has a clock of its own.
        """
        now = time.monotonic()
        begin = self._begin.setdefault(what, now)
        every = _EVERY_S if self._live else LINE_EVERY_S
        if (what == self._what or not self._live) and now - self._drawn_at < every:
            return
        self._drawn_at = now
        share = min(max(done / planned, 0.0), 1.0) if planned else 0.0
        left = f", {(now - begin) * (1 / share - 1):.0f} s left" if share and now > begin else ""
        name = f"{what[:32]} " if what else ""
        if not self._live:
            self._out.write(f"{name}{share:.0%}{left}\n")
            self._out.flush()
            return
        self._what = what
        bar = "#" * round(_WIDTH * share)
        self._out.write(f"\r{name}[{bar:<{_WIDTH}}] {share:>4.0%}{left} \x1b[K")
        self._out.flush()

    def show_share(self, share: float, what: str) -> None:
        """As `show`, for a part that gives its share from 0 to 1: the build of a plan."""
        self.show(share, 1.0, what)

    def wipe(self) -> None:
        """Clears the line."""
        if self._what is not None:
            self._out.write("\r\x1b[K")
            self._out.flush()
            self._what = None


@contextmanager
def bar() -> Iterator[Callable[..., None]]:
    """Gives `ProgressLine.show` (done, total, what); the line is wiped at the end."""
    line = ProgressLine()
    try:
        yield line.show
    finally:
        line.wipe()
