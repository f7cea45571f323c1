"""Clocks of the benchmarks.

What a clock that ticks seldom does not see counts as a microsecond, so that nothing is divided by
zero. A figure from so short a run says nothing: more work is the remedy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

LEAST_S = 1e-6

Clock = Callable[[], float]
_Result = TypeVar("_Result")


def clock_for(threads: int) -> Clock:
    """Returns CPU time where one thread works, as other programs do not change it; else wall."""
    return time.thread_time if threads == 1 else time.perf_counter


def timed(call: Callable[[], _Result], clock: Clock) -> tuple[_Result, float]:
    """Returns what a call gives, and its seconds."""
    begin = clock()
    result = call()
    return result, max(clock() - begin, LEAST_S)
