"""Which context buckets are worth their place, by the predicted time of a whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ...jetson.forecast.forecast import Forecast
from ...runtime.bundle.manifest import GraphSpec

WORTH = 0.02
"""A further context bucket must make decoding this much faster: each is one more profile to
build."""


def best_buckets(
    offered: Sequence[int], rate_of: Callable[[Sequence[int]], float]
) -> tuple[tuple[int, ...], float]:
    """Returns the fewest context buckets that decode about as fast as all, and their tokens/s.

    The largest stays; smaller ones are added while one makes a text faster by WORTH.

    Args:
        offered: Buckets to choose from; empty: there is no cache.
        rate_of: Gives the tokens/s with some of them.
    """
    kept = [max(offered)] if offered else []
    rate = rate_of(kept)
    while True:
        trials = [(rate_of([*kept, size]), size) for size in offered if size not in kept]
        faster = max(trials, default=(0.0, 0))
        if faster[0] < rate * (1 + WORTH):
            return tuple(sorted(kept)), rate
        rate, size = faster
        kept.append(size)


def text_rate(forecast: Forecast, runs: Iterable[tuple[GraphSpec, float]], positions: int) -> float:
    """Predicts tokens/s over a text of so many positions that takes these runs."""
    total = 0.0
    for spec, count in runs:
        part = forecast.graphs[spec.key]
        total += count * (part.step_ms + part.outside_ms)
    return 1e3 * positions / total
