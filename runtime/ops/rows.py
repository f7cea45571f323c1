"""One row of logits as a distribution: processing, truncation, and drawing by inverse distribution.

Works in one row's scratch, which stays in the first-level cache, so that a whole step over 32 rows
of 8,192 logits costs less than a tenth of a small model's run. Knows no canvas.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import EngineError
from .base import CHUNK


class Statistics(NamedTuple):
    """Of the model's own distribution in a row (temperature 1, before top-k and top-p)."""

    log_sum_exp: float
    first: int
    """Most likely id, the lowest among equals."""
    first_p: float
    second: int
    """Next likely id, the lowest among equals."""
    second_p: float
    entropy: float
    """Nats."""


class RowScratch:
    """Working memory for rows of one vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        padded = -(-vocab_size // CHUNK) * CHUNK
        self.vocab_size = vocab_size
        self._logits = np.zeros(padded, np.float32)
        self._weights = np.zeros(padded, np.float32)
        self._other = np.zeros(padded, np.float32)
        self.chunks = self._weights.reshape(-1, CHUNK)
        self.sums = np.zeros(padded // CHUNK, np.float32)
        self.cumulative = np.zeros(padded // CHUNK, np.float64)
        self.within = np.zeros(CHUNK, np.float64)
        self.logits = self._logits[:vocab_size]
        """(vocab,) float32: processed logits."""
        self.weights = self._weights[:vocab_size]
        """(vocab,) float32: exp of them, the highest being 1. Behind the end stand zeros."""
        self.other = self._other[:vocab_size]


def process(
    scratch: RowScratch,
    row: np.ndarray,
    *,
    banned: np.ndarray,
    bias: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    seen: np.ndarray | None = None,
    penalty: float = 1.0,
) -> np.ndarray:
    """Copies a row into the scratch and applies all that changes logits.

    Args:
        scratch: Its `logits` are written.
        row: (vocab,) float32 or float16.
        banned: int64 ids that become -inf.
        bias: (vocab,) float32, or None.
        allowed: (ceil(vocab / 32),) uint32, or None.
        seen: int64 ids that the repetition penalty applies to, or None.
        penalty: At least 1.

    Returns:
        `scratch.logits`.
    """
    logits = scratch.logits
    np.copyto(logits, row)
    if bias is not None:
        logits += bias
    if seen is not None and len(seen):
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / penalty, values * np.float32(penalty))
    if allowed is not None:
        bits = np.unpackbits(allowed.astype("<u4", copy=False).view(np.uint8), bitorder="little")[
            : scratch.vocab_size
        ]
        logits[bits == 0] = -np.inf
    logits[banned] = -np.inf
    return logits


def highest(logits: np.ndarray) -> tuple[int, float]:
    """Gives the lowest id of the highest logit, and that; EngineError if it is not finite."""
    first = int(logits.argmax())
    value = float(logits[first])
    if not np.isfinite(value):
        raise EngineError(
            f"a row of logits has {value} as its highest allowed value; the graph overflows: "
            "try another precision, or allow more tokens"
        )
    return first, value


def exponentiate(scratch: RowScratch, top: float, temperature: float) -> np.ndarray:
    """Fills `scratch.weights` with exp((logits - top) / temperature), float32."""
    weights = scratch.weights
    np.subtract(scratch.logits, np.float32(top), out=weights)
    if temperature != 1.0:
        weights *= np.float32(1.0 / temperature)
    np.exp(weights, out=weights)
    return weights


def chunk_sums(scratch: RowScratch) -> float:
    """Sums `weights` in chunks of 64 and accumulates them in float64; returns the total.

    NumPy's contiguous float32 sum of 64 values is the documented order: eight interleaved partial
    sums, joined pairwise.
    """
    np.add.reduce(scratch.chunks, axis=1, out=scratch.sums)
    np.cumsum(scratch.sums, dtype=np.float64, out=scratch.cumulative)
    return float(scratch.cumulative[-1])


def draw(scratch: RowScratch, uniform: float) -> int:
    """Draws an id from the last `chunk_sums` by inverse distribution function."""
    target = uniform * scratch.cumulative[-1]
    chunk = int(np.searchsorted(scratch.cumulative, target, side="right"))
    chunk = min(chunk, len(scratch.sums) - 1)
    np.copyto(scratch.within, scratch.chunks[chunk])
    if chunk:
        scratch.within[0] += scratch.cumulative[chunk - 1]
    np.cumsum(scratch.within, out=scratch.within)
    index = int(np.searchsorted(scratch.within, target, side="right"))
    if index == CHUNK:  # the float32 chunk sum was above the float64 one by rounding
        index = int(np.flatnonzero(scratch.chunks[chunk])[-1])
    return chunk * CHUNK + index


def statistics(scratch: RowScratch, first: int, top: float, total: float) -> Statistics:
    """Gives a row's statistics from its temperature-1 weights and their total.

    `logits[first]` is written over and restored.
    """
    logits, weights = scratch.logits, scratch.weights
    # H = log Z - sum w (l - top) / Z; the product is 0 where w is, also for l = -inf.
    other = scratch.other
    np.subtract(logits, np.float32(top), out=other)
    np.maximum(other, np.float32(-200.0), out=other)
    np.multiply(other, weights, out=other)
    mean = float(np.add.reduce(other, dtype=np.float64)) / total
    kept = logits[first]
    logits[first] = -np.inf
    second = int(logits.argmax())
    logits[first] = kept
    return Statistics(
        log_sum_exp=top + float(np.log(total)),
        first=first,
        first_p=1.0 / total,
        second=second,
        second_p=float(weights[second]) / total,
        entropy=max(0.0, float(np.log(total)) - mean),
    )


def truncate(scratch: RowScratch, top_k: int | None, top_p: float | None) -> None:
    """Sets all weights to 0 but the top k and, within them, the nucleus of share top_p.

    Order is weight descending, id ascending. Candidates are found by falling thresholds, so that
    only a short list is ever sorted.
    """
    weights = scratch.weights
    wanted = scratch.vocab_size if top_k is None else min(top_k, scratch.vocab_size)
    share = 1.0 if top_p is None else top_p
    if wanted == scratch.vocab_size and share >= 1.0:
        return
    total = float(np.add.reduce(weights, dtype=np.float64))
    floor = 2.0**-6
    while True:
        ids = np.flatnonzero(weights >= np.float32(floor))
        mass = float(np.add.reduce(weights[ids], dtype=np.float64))
        enough = len(ids) >= wanted if top_k is not None else mass >= share * total
        if enough or floor < 1e-37:
            break
        floor /= 16.0
    # A stable sort keeps ids ascending among equal weights.
    order = ids[np.argsort(-weights[ids], kind="stable")][:wanted]
    if share < 1.0:
        running = np.cumsum(weights[order], dtype=np.float64)
        reference = running[-1] if top_k is not None else total
        order = order[: int(np.searchsorted(running, share * reference, side="left")) + 1]
    kept = weights[order]
    weights.fill(0.0)
    weights[order] = kept
