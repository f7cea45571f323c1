"""Canvases: the inputs that a graph gets while a text is decoded, kept for calibration.

A set is a sample over strata (graph, block, context, mask-ratio decile), so that rare states count
as much as frequent ones; late steps and positions that are about to be committed weigh more,
because an error there becomes text. Made by `record.py`, read by whatever measures a graph: ranges,
sensitivity, quality. Independent of precision, so that one set serves all of them.

Knows no family and no ONNX.

Source of the idea: calibration by sampled time steps and mask ratios (DLLMQuant, arXiv 2508.14090)
and by weight on the tokens about to be unmasked (FAIR-Calib, arXiv 2606.06547); here both come out
of the decoding loop itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphKey, GraphSpec

NUM_DECILES = 10
SOURCES = ("decode", "random", "clean", "noise")
LATE_WEIGHT = 1.0
"""The last step of a block counts this much more than the first."""
COMMITTING_WEIGHT = 1.0
"""A position about to be committed counts this much more than the others."""
Stratum = tuple[GraphKey, int]
"""Shape of a graph, decile."""


class Inputs(Mapping[str, np.ndarray]):
    """The inputs of one run by name; of a cache only the rows in use are held.

    A text's cache grows row by row, so that all canvases of it can be views of one array.
    """

    __slots__ = ("_rows", "arrays")

    def __init__(
        self, arrays: Mapping[str, np.ndarray], rows: Mapping[str, int] | None = None
    ) -> None:
        """Takes arrays, and the full number of rows of those that hold only the first ones."""
        self.arrays = dict(arrays)
        """What is held."""
        self._rows = dict(rows or {})

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns an input in its full shape, zeros behind the rows in use."""
        array = self.arrays[name]
        rows = self._rows.get(name)
        if rows is None:
            return array
        full = np.zeros((rows, *array.shape[1:]), array.dtype)
        full[: len(array)] = array
        return full

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """The inputs of one graph run, and its place in a decode."""

    spec: GraphSpec
    inputs: Inputs
    """Every input of the graph by name, in its full shape; cache rows that nothing reads are 0."""
    mask_ratio: float
    """Share of the canvas that is masked; where noise replaces tokens by others instead, the chance
    that it did. 0 for families without noise."""
    progress: float
    """How far the decode of this block is: 0 at its first step, 1 at its last."""
    committing: np.ndarray
    """(rows,) bool: positions that the next step sees changed, that is, about to be committed."""
    weight: float
    """Of the whole canvas in statistics."""
    source: str
    """One of SOURCES: a decoding step, training-style masks, unmasked text, random tokens."""
    rest: float = 1.0
    """What any other position counts; 0 where nothing reads it, as the proposals that a
    run of drafts does not follow."""

    @property
    def decile(self) -> int:
        """0 for a canvas without masks, else 1 to 10: the mask ratio in tenths, rounded up."""
        return min(int(np.ceil(round(self.mask_ratio * NUM_DECILES, 9))), NUM_DECILES)

    @property
    def stratum(self) -> Stratum:
        """Coverage is counted by it."""
        return (self.spec.key, self.decile)

    @property
    def row_weights(self) -> np.ndarray:
        """(rows,) float64: what each position counts in statistics."""
        return self.weight * np.where(self.committing, 1.0 + COMMITTING_WEIGHT, self.rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasSet:
    """Canvases of one model, and how they were made."""

    items: tuple[RecordedRun, ...]
    model_sha256: str
    """Of the graphs' members: a set belongs to one model, in any precision made from it."""
    recipe: Mapping[str, Any]
    """Seed, settings and data they were recorded with, for reports."""

    def __len__(self) -> int:
        return len(self.items)

    def holds(self, token_id: int | None) -> bool:
        """Returns whether any canvas of ids holds a token."""
        return token_id is not None and any(
            bool((array == token_id).any())
            for item in self.items
            for array in item.inputs.arrays.values()
            if array.ndim == 2 and np.issubdtype(array.dtype, np.integer)
        )

    def coverage(self) -> dict[Stratum, dict[str, int]]:
        """Counts canvases per stratum and source."""
        counts = Counter((item.stratum, item.source) for item in self.items)
        found: dict[Stratum, dict[str, int]] = {}
        for (stratum, source), number in sorted(counts.items()):
            found.setdefault(stratum, {})[source] = number
        return found

    def missing(
        self, specs: Iterable[GraphSpec], *, blocks: Sequence[int], masked: bool
    ) -> list[Stratum]:
        """Lists strata that should be there and are not.

        Args:
            specs: Every graph shape of the bundle.
            blocks: Rows that texts are decoded by; shapes of other sizes are left out.
            masked: Whether the family has masks; if not, only canvases without any are wanted.

        Of n rows only shares k / n can be masked, so that small shapes have fewer
        deciles. The clean decile is wanted only where nothing is ever masked.
        """
        have = set(self.coverage())
        wanted: set[Stratum] = set()
        for spec in (item for item in specs if item.rows in blocks):
            counts = range(1, spec.rows + 1) if masked else range(1)
            for count in counts:
                decile = int(np.ceil(round(count / spec.rows * NUM_DECILES, 9)))
                wanted.add((spec.key, decile))
        return sorted(wanted - have)
