"""Logits of a graph that leaves its head to another graph, so that only needed rows pay for it.

| graph | inputs | outputs |
|---|---|---|
| trunk | … | `hidden` (1, rows, dim), role `hidden`, in place of logits |
| `head` | `rows` (1, rows, dim), role `hidden_rows` | `logits` (1, rows, vocab) |

Worth it where products cost more than reading the head's weights: on CPUs. Knows no rule and no
text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from ..bundle.manifest import GraphSpec
from ..engines.base import Engine, EngineSet
from ..errors import BundleError, ConfigError
from ..ops.core import Ops
from .window import logits

HEAD = "head"


class Heads:
    """The head graphs of a bundle, by how many rows they take."""

    def __init__(self, specs: Sequence[GraphSpec]) -> None:
        """Takes a bundle's shapes; raises BundleError where a head does not fit its trunk."""
        own = {spec.rows: spec for spec in specs if spec.name == HEAD and spec.batch == 1}
        widths = {out.shape[-1] for spec in specs for out in spec.outputs if out.role == "hidden"}
        for spec in own.values():
            _check_head(spec, widths)
        self._specs = {rows: own[rows] for rows in sorted(own)}
        self._sizes = list(self._specs)
        self.logit_type = self._specs[self._sizes[0]].tensor("logits").dtype if own else None
        """NumPy name; None: there are none."""

    def __bool__(self) -> bool:
        """Whether logits come from a graph of their own."""
        return bool(self._sizes)

    def check(self, count: int) -> None:
        """Raises ConfigError if there are heads, and none takes so many rows."""
        if self._sizes and self._sizes[-1] < count:
            raise ConfigError(
                f"the bundle's head takes {self._sizes[-1]} rows at most, {count} are needed; "
                "export it again"
            )

    def run_of(self, count: int) -> GraphSpec:
        """Gives the smallest head that takes so many rows."""
        return self._specs[min(size for size in self._sizes if size >= count)]

    def feed(
        self, ops: Ops, engine: Engine, hidden: Any, start: int, count: int, stride: int = 1
    ) -> None:
        """Writes rows start, start + stride, … of a trunk's output into the head's input."""
        target = engine.inputs[engine.spec.tensor("hidden_rows").name]
        if stride == 1:
            ops.assign(ops.rows(target, 0, count), ops.rows(hidden, start, count))
            return
        for row in range(count):
            ops.assign(ops.rows(target, row, 1), ops.rows(hidden, start + row * stride, 1))

    def all_rows(
        self, engines: EngineSet, ops: Ops, engine: Engine, count: int
    ) -> Iterator[np.ndarray]:
        """Gives the logits of a run's first rows on the host, through as many heads as it takes.

        Yields:
            (n, vocab) arrays, valid until the next is asked for; rows in order.
        """
        if not self:
            yield ops.to_host(logits(engine)).reshape(engine.spec.rows, -1)[:count]
            return
        hidden, size = hidden_rows(engine), self._sizes[-1]
        for start in range(0, count, size):
            taken = min(size, count - start)
            head = engines.engine(self.run_of(taken))
            self.feed(ops, head, hidden, start, taken)
            head.run()
            yield ops.to_host(logits(head)).reshape(head.spec.rows, -1)[:taken]


def _check_head(spec: GraphSpec, widths: Collection[int]) -> None:
    taken = [tensor.shape for tensor in spec.inputs if tensor.role == "hidden_rows"]
    made = [tensor.shape[:2] for tensor in spec.outputs if tensor.role == "logits"]
    if len(taken) != 1 or taken[0] not in {(1, spec.rows, width) for width in widths}:
        what = f"takes {taken}, the trunk gives (1, {spec.rows}, D) with D in {sorted(widths)}"
    elif made != [(1, spec.rows)]:
        what = f"gives no logits of {spec.rows} rows"
    else:
        return
    raise BundleError(f"the bundle's graph {HEAD} {what}; export it again")


def hidden_rows(engine: Engine) -> Any:
    """Gives what a trunk hands to its head: (1, rows, dim)."""
    return engine.outputs[engine.spec.tensor("hidden").name]
