"""Canvases to check a graph on: real text, noisy at every level from none to all.

Text comes from a file, or from the paragraph below, which any subword vocabulary can spell. Knows
no family: what noise looks like is each graph's `corrupt`; without one, canvases are clean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphSpec, Manifest
from ...runtime.errors import DataError
from ...runtime.text.framing import Framing
from ...runtime.text.tokenizer import Tokenizer
from ...train.data.sources import documents, find_source
from ...train.families.base import Corrupt

MOST_BLOCKS = 8
MANY_SCORES = 1 << 20
"""Of one run: beyond these, which take a second to compare, fewer noise levels, positions and rows
are tried."""
FEW_POSITIONS = 64
MASK_RATIOS = tuple(tenth / 10 for tenth in range(11))
SPLIT_RATIOS = (0.0, 0.5, 1.0)
"""Of canvases of two blocks, the first of which is clean."""
PARAGRAPH = """Once upon a time there was a small red boat that lived by the sea. Every morning it
waited for the wind, and every evening it came back with a story. One day a little girl named Anna
found it on the beach. "Where have you been?" she asked. The boat did not answer, but in it lay a
shell, a feather and a letter. Anna read the letter to her brother Tom. It said that far away there
was an island with apple trees and friendly birds, and that nobody had been there for a long time.
They packed bread and cheese, told their mother, and pushed the boat into the water. The sun was
warm, the waves were low, and they sang until they could see the island. """


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInput:
    """One input of a block step."""

    start: int
    """Committed positions before the block."""
    ids: np.ndarray
    """(1, rows) int32, or latents (1, rows, dim) float32."""
    mask_ratio: float
    """Level of its noise."""
    split: int = 0
    """Positions of a finished block before the noisy one, which see none of it; 0: one block."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Values of the graph's further inputs, by role."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The value of each input role that a canvas determines."""
        return {"canvas": self.ids, "start": self.start, "split": self.split, **self.extra}


def text_ids(tokenizer: Tokenizer, framing: Framing, length: int, data: Path | None) -> np.ndarray:
    """Returns (length,) int32 ids of real text, with the tokens around each document.

    Raises:
        DataError: The text has no token in this vocabulary.
    """
    texts = iter([PARAGRAPH]) if data is None else documents(find_source(str(data)))
    ids: list[int] = []
    for document in texts:
        words = tokenizer.encode(" ".join(document.split()))
        ids += framing.document(words) if words else []
        if len(ids) >= length:
            break
    if not ids:
        raise DataError(
            "the checkpoint's vocabulary spells no word of the text that export checks with: "
            "name a text of its kind with --data"
        )
    return np.resize(np.asarray(ids, dtype=np.int32), length)


def is_large(spec: GraphSpec, manifest: Manifest) -> bool:
    """Returns whether a run gives so many logits that few runs are tested."""
    return spec.rows * manifest.vocab_size > MANY_SCORES


def starts_of(spec: GraphSpec, manifest: Manifest) -> tuple[int, ...]:
    """Returns numbers of committed positions to test, the most that a test has time for last.

    The longest context is filled, in MOST_BLOCKS runs at most, to FEW_POSITIONS where runs give
    many logits. The others are the same graph over less of the same cache: one block.
    """
    last = min(min(spec.context, manifest.max_position - spec.rows) // spec.rows, MOST_BLOCKS)
    contexts = [
        item.context for item in manifest.graphs if (item.name, item.rows) == (spec.name, spec.rows)
    ]
    if spec.context < max(contexts):
        chosen = {min(1, last)}
    elif is_large(spec, manifest):
        chosen = {min(last, max(1, FEW_POSITIONS // spec.rows))}
    else:
        chosen = {0, 1, last // 2, last}
    return tuple(sorted(number * spec.rows for number in chosen if 0 <= number <= last))


def splits_of(spec: GraphSpec) -> tuple[int, ...]:
    """Returns the values of `split` to test: none, and a block that is half of the shape's."""
    half = spec.rows // 2 if spec.rows % 2 == 0 else 0
    return (0, half) if half and any(t.role == "split" for t in spec.inputs) else (0,)


def canvases(
    spec: GraphSpec,
    ids: np.ndarray,
    start: int,
    corrupt: Corrupt | None,
    seed: int,
    split: int = 0,
) -> Iterator[BlockInput]:
    """Yields the block at `start` at each noise level; position 0 is always clean.

    Args:
        ids: Clean text (L,) int32 with L >= start + block.
        start: Multiple of the block size.
        corrupt: The graph's noise; None: only the clean block.
        split: Positions that stay clean and see nothing behind them.
    """
    ratios = SPLIT_RATIOS if split else MASK_RATIOS
    for level in ratios if corrupt is not None else (0.0,):
        yield noisy_canvas(spec, ids, start, corrupt, level, seed, split)


def noisy_canvas(
    spec: GraphSpec,
    ids: np.ndarray,
    start: int,
    corrupt: Corrupt | None,
    level: float,
    seed: int,
    split: int = 0,
) -> BlockInput:
    """Gives the block at `start` at one noise level; see `canvases`."""
    clean = ids[start : start + spec.rows]
    if corrupt is None:
        return BlockInput(start=start, ids=clean[None], mask_ratio=level, split=split)
    rng = np.random.default_rng((seed, start, spec.rows, spec.context))
    noisy, extra = corrupt(clean[split:], level, rng, spec.block)
    if start == 0 and not split and noisy.ndim == 1:  # the first token is given; latents have none
        noisy[0] = clean[0]
    if split:
        noisy = np.concatenate([clean[:split], noisy])
        at_rest = corrupt(clean[:split], 0.0, rng, spec.block)[1]
        extra = {role: _joined(spec, role, at_rest, extra, split) for role in extra}
    return BlockInput(start=start, ids=noisy[None], mask_ratio=level, split=split, extra=extra)


def _joined(
    spec: GraphSpec,
    role: str,
    clean: Mapping[str, Any],
    noisy: Mapping[str, Any],
    split: int,
) -> Any:
    """Returns an input of two blocks: where it has a value per position, each has its own."""
    if any(t.role == role and t.shape and t.shape[-1] == spec.rows for t in spec.inputs):
        value = np.full(spec.rows, noisy[role], np.float32)
        value[:split] = clean[role]
        return value
    return noisy[role]
