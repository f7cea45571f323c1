"""Which context buckets are worth their place, by the predicted time of a whole text."""

from __future__ import annotations

from collections.abc import Sequence

from ...jetson.forecast.plan import Plan

WORTH = 0.02
"""A further context bucket must make decoding this much faster: each is one more profile to
build."""


def best_buckets(
    plan: Plan,
    block: int,
    tokens_per_nfe: float,
    positions: int,
    offered: Sequence[int] = (),
    *,
    beside_ms: float = 0.0,
) -> tuple[tuple[int, ...], float]:
    """Returns the fewest context buckets that decode about as fast as all, and their tokens/s.

    The largest stays; smaller ones are added while one makes a text of the model's full length
    faster by WORTH. Graphs without a cache have none.

    Args:
        plan: Of all shapes.
        block: Rows of the run that a text is decoded by.
        tokens_per_nfe: Generated tokens per such run.
        positions: Of a text.
        offered: Buckets to choose from; empty: those of the plan.
        beside_ms: What each run takes besides, such as those of a head that is a graph of its own.
    """
    sizes = [context for _, size, context in plan.graphs if size == block]
    sizes = [size for size in sizes if size in offered] or sizes
    kept = [max(sizes)]
    rate = text_rate(plan, kept, block, tokens_per_nfe, positions, beside_ms)
    while True:
        trials = [
            (
                text_rate(plan, [*kept, size], block, tokens_per_nfe, positions, beside_ms),
                size,
            )
            for size in sizes
            if size not in kept
        ]
        faster = max(trials, default=(0.0, 0))
        if faster[0] < rate * (1 + WORTH):
            return tuple(sorted(size for size in kept if size)), rate
        rate, size = faster
        kept.append(size)


def text_rate(
    plan: Plan,
    kept: Sequence[int],
    block: int,
    tokens_per_nfe: float,
    positions: int,
    beside_ms: float = 0.0,
) -> float:
    """Predicted tokens/s over a text of so many positions, with these context buckets.

    A block takes block / tokens_per_nfe runs; where the graph has a shape of twice the block, one
    of them is that one, which stores the block before. Behind the largest context the window
    slides, half of it at a time: each block then costs one more run, which fills the cache again.
    """
    times = {
        (size, context): part.step_ms + part.outside_ms
        for (_, size, context), part in plan.graphs.items()
    }
    runs = max(1.0, block / tokens_per_nfe)
    starts = range(0, max(1, positions - block + 1), block)
    total = 0.0
    for start in starts:
        bucket = min((size for size in kept if size >= start), default=max(kept))
        one = times[block, bucket] + beside_ms
        total += (runs - 1) * one + times.get((2 * block, bucket), one)
        total += one if 0 < max(kept) < start else 0.0
    return 1e3 * block * len(starts) / total
