"""How much memory the values between operations need at once. Knows no machine.

A value lives from the step that makes it to the last step that reads it. What a step makes exists
beside what it reads, unless the step may write over an input that dies there. So the peak follows
from the graph in execution order; it is what an allocator without fragmentation needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation, as memory sees it."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    in_place: bool = False
    """Whether its first output may take the place of an equally large input that dies here."""


def peak_bytes(
    steps: Sequence[Operation], sizes: Mapping[str, int], kept: Iterable[str] = ()
) -> int:
    """Returns the largest sum of bytes that are alive at any step.

    Args:
        steps: In execution order.
        sizes: Bytes of each value that takes memory; other names (weights, inputs, views of
            something else) cost nothing here.
        kept: Values that stay to the end.
    """
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in (*step.writes, *step.reads):
            last[name] = index
    for name in kept:
        last[name] = len(steps)
    alive: dict[str, int] = {}
    peak = 0
    for index, step in enumerate(steps):
        taken = _replaced(step, index, last, alive, sizes) if step.in_place else None
        if taken is not None:
            del alive[taken]
        alive |= {name: sizes[name] for name in step.writes if sizes.get(name)}
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last[name] > index}
    return peak


def _replaced(
    step: Operation,
    index: int,
    last: Mapping[str, int],
    alive: Mapping[str, int],
    sizes: Mapping[str, int],
) -> str | None:
    """The input that the first output overwrites."""
    wanted = sizes.get(step.writes[0], 0)
    for name in step.reads:
        if name in alive and last[name] == index and alive[name] == wanted:
            return name
    return None
