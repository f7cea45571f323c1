"""A bar on a terminal for work whose length is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .progress import ProgressLine


@contextmanager
def bar(*, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Gives a callback (done, total) that draws a bar on a terminal, wiped at the end."""
    if quiet:
        yield lambda done, total: None
        return
    drawn = ProgressLine()
    try:
        yield drawn.show
    finally:
        drawn.wipe()
