"""Rows of logits as distributions: processing, truncation, and drawing by inverse distribution.

Row by row where a row's scratch stays in the first-level cache (processing, exponentials), all rows
at once for what is small (chunk sums, distribution functions), so that a step over 32 rows of 8,192
logits costs a small part of a small model's run. Knows no canvas and no rule.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from ...errors import EngineError
from .contract import CHUNK, RowOps

FEW_ROWS = 6
"""Up to so many rows are located one by one, with the same sums: on an EPYC core, after a graph run
has taken the caches, that costs 6 us each, while all together cost 55 at least."""

NOTHING = np.float32(-200.0)
"""exp of it is 0 in float32, and 0 times it is 0, which does not hold for -inf."""


class RowScratch:
    """Working memory for the rows of one block."""

    def __init__(self, block: int, vocab_size: int) -> None:
        padded = -(-vocab_size // CHUNK) * CHUNK
        self.vocab_size = vocab_size
        self.logits = np.zeros(vocab_size, np.float32)
        """(vocab,): processed logits of the row at hand."""
        self.other = np.zeros(vocab_size, np.float32)
        """(vocab,): anything about the row at hand."""
        self.chunks = np.zeros((block, padded // CHUNK, CHUNK), np.float32)
        """(block, chunks, 64): weights of every drawn row; zeros behind the vocabulary's end."""
        self.weights = self.chunks.reshape(block, padded)[:, :vocab_size]
        self.sums = np.zeros((block, padded // CHUNK), np.float32)
        """(block, chunks): sums of the weights in chunks."""
        self.total = np.zeros(block, np.float64)
        """(block,): sum of exp(logit - highest), at temperature 1 and before top-k and top-p."""


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
        strength = np.float32(penalty)
        logits[seen] = np.where(values > 0, values / strength, values * strength)
    if allowed is not None:
        bytes_ = allowed.astype("<u4", copy=False).view(np.uint8)
        bits = np.unpackbits(bytes_, bitorder="little")[: scratch.vocab_size]
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


def exponentiate(logits: np.ndarray, top: float, temperature: float, out: np.ndarray) -> None:
    """Writes exp((logits - top) / temperature), float32, into `out`."""
    np.subtract(logits, np.float32(top), out=out)
    if temperature != 1.0:
        np.multiply(out, np.float32(1.0 / temperature), out=out)
    np.exp(out, out=out)


def entropy(scratch: RowScratch, weights: np.ndarray, top: float, total: float) -> float:
    """Gives the entropy in nats of a row: log Z - sum w (l - top) / Z, from temperature 1."""
    other = scratch.other
    np.subtract(scratch.logits, np.float32(top), out=other)
    np.maximum(other, NOTHING, out=other)
    mean = float(np.dot(other, weights)) / total
    return max(0.0, float(np.log(total)) - mean)


def margin(weights: np.ndarray, first: int, total: float) -> float:
    """Gives p(first) - p(second) of a row from its temperature-1 weights, which are restored."""
    kept = weights[first]
    weights[first] = 0.0
    second = float(weights.max())
    weights[first] = kept
    return (float(kept) - second) / total


def truncate(weights: np.ndarray, top_k: int | None, top_p: float | None) -> None:
    """Sets all weights to 0 but the top k and, within them, the nucleus of share top_p.

    Order is weight descending, id ascending. Only values are sorted, and only those above a
    threshold that falls until enough are found.
    """
    size = len(weights)
    wanted = size if top_k is None else min(top_k, size)
    share = 1.0 if top_p is None else top_p
    if wanted == size and share >= 1.0:
        return
    all_of_them = float(np.add.reduce(weights))
    floor = 2.0**-6
    while True:
        values = np.sort(weights[weights >= np.float32(floor)])[::-1]
        if floor < 1e-37:
            break
        if top_k is not None:
            enough = len(values) >= wanted
        else:
            enough = float(np.add.reduce(values)) >= share * all_of_them * (1 + 1e-5)
        if enough:
            break
        floor /= 64.0
    values = values[:wanted]
    if share < 1.0:
        running = np.cumsum(values, dtype=np.float64)
        reference = running[-1] if top_k is not None else all_of_them
        values = values[: int(np.searchsorted(running, share * reference)) + 1]
    last = values[-1]
    surplus = int(np.count_nonzero(weights >= last)) - len(values)
    if surplus:  # the highest ids among those equal to the last one
        weights[np.flatnonzero(weights == last)[-surplus:]] = 0.0
    np.multiply(weights, weights >= last, out=weights)


def sum_chunks(scratch: RowScratch, slot: int) -> float:
    """Sums a slot's weights in chunks of 64, and these in float64; returns the total.

    NumPy's contiguous float32 sum of 64 values is the documented order: eight interleaved partial
    sums, joined pairwise.
    """
    sums = scratch.sums[slot]
    np.add.reduce(scratch.chunks[slot], axis=1, out=sums)
    return float(np.add.reduce(sums, dtype=np.float64))


def draw(scratch: RowScratch, uniforms: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Draws one id from each of some slots whose chunks were summed.

    Args:
        scratch: Its `chunks` and `sums`, rows [first, first + n).
        uniforms: (n,) float64.
        first: The first slot.

    Returns:
        (n,) int64 ids.
    """
    slots = np.arange(first, first + len(uniforms))
    return locate(scratch.chunks, scratch.sums, slots, uniforms)


def locate(
    chunks: np.ndarray, sums: np.ndarray, rows: np.ndarray, uniforms: np.ndarray
) -> np.ndarray:
    """Draws one id from each of some rows of weights.

    Args:
        chunks: (slots, chunks, 64) float32 weights.
        sums: (slots, chunks) float32 sums of them.
        rows: (n,) slots to draw from.
        uniforms: (n,) float64.

    Returns:
        (n,) int64 ids.
    """
    if len(rows) <= FEW_ROWS:
        draws = zip(rows.tolist(), uniforms.tolist(), strict=True)
        found = [_locate_one(chunks[row], sums[row], uniform) for row, uniform in draws]
        return np.array(found, np.int64)
    before = np.zeros((len(rows), sums.shape[1] + 1))
    np.add.accumulate(sums[rows], axis=1, dtype=np.float64, out=before[:, 1:])
    target = uniforms * before[:, -1]
    # The last chunk is the target's where no other is.
    chunk = np.add.reduce(before[:, 1:-1] <= target[:, None], axis=1)
    # One row per column, so that sums run over all rows at once: five times as fast.
    within = np.array(chunks[rows, chunk].T, np.float64, order="C")
    within[0] += before[np.arange(len(rows)), chunk]
    index = np.add.reduce(np.add.accumulate(within, axis=0) <= target, axis=0)
    for one in (index == CHUNK).nonzero()[0]:
        # The chunk's float32 sum was above the float64 one by rounding: its last weight.
        index[one] = np.flatnonzero(chunks[rows[one], chunk[one]])[-1]
    return chunk * CHUNK + index


def _locate_one(chunks: np.ndarray, sums: np.ndarray, uniform: float) -> int:
    """Draws one id from one row of weights, (chunks, 64) with their (chunks,) sums."""
    before = list(accumulate(sums.tolist(), initial=0.0))
    target = uniform * before[-1]
    # The last chunk is the target's where no other is.
    chunk = min(bisect_right(before, target, lo=1), len(sums)) - 1
    first, *others = chunks[chunk].tolist()
    index = bisect_right(list(accumulate(others, initial=first + before[chunk])), target)
    if index == CHUNK:
        index = int(np.flatnonzero(chunks[chunk])[-1])
    return chunk * CHUNK + index


class NumpyRows(RowOps):
    """The primitive `rows` on NumPy arrays."""

    def guide(self, logits: np.ndarray, scale: float) -> np.ndarray:
        half = len(logits) // 2
        conditional, without = logits[:half], logits[half:]
        moved = conditional.astype(np.float32)
        moved -= without
        moved *= np.float32(scale)
        moved += without
        conditional[...] = moved
        return conditional
