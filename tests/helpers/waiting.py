"""Waiting for what another thread does, however slow the machine."""

import time
from collections.abc import Callable

LIMIT_S = 600


def wait(ready: Callable[[], object]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.01)
