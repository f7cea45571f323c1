"""Which tokens a training step sees, as a pure function of (seed, step).

Half of the sequences start at a document's `<eos>`, half anywhere. Both halves are drawn without
replacement: every document start and every stretch of text comes once per pass. Nothing is kept
between steps, so resuming needs no iterator state, and N ranks that each take their part of the
global batch see exactly what one rank would see.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .shards import TokenStream

_DOCUMENTS, _OFFSETS = 1, 2
"""Names of the two random streams."""


class Batches:
    """Global batches of one token stream."""

    def __init__(self, stream: TokenStream, *, context: int, batch_size: int, seed: int) -> None:
        """Prepares the draw.

        Args:
            stream: tokens to read; at least `context` of them.
            context: tokens of a sequence, L.
            batch_size: sequences of a global batch, G.
            seed: of the order.
        """
        self._tokens = stream.tokens
        self._context, self._batch_size, self._seed = context, batch_size, seed
        last = len(stream.tokens) - context
        self._starts = stream.starts[stream.starts <= last]
        self._num_windows = max(1, len(stream.tokens) // context)
        self._last = last
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    def rows(self, step: int) -> np.ndarray:
        """Returns the global batch of a step: (G, L) int64 token ids."""
        first = step * self._batch_size
        offsets = [self._offset(first + row) for row in range(self._batch_size)]
        rows = [self._tokens[o : o + self._context] for o in offsets]
        return np.stack(rows).astype(np.int64)

    def _offset(self, sequence: int) -> int:
        """Returns where the `sequence`-th sequence of the run starts."""
        index, odd = divmod(sequence, 2)
        if not odd and len(self._starts):
            epoch, place = divmod(index, len(self._starts))
            return int(self._starts[self._permutation(_DOCUMENTS, epoch)[place]])
        if not len(self._starts):
            index = sequence
        epoch, place = divmod(index, self._num_windows)
        # Each pass cuts the text at another phase, so that windows do not always part there.
        phase = int(self._generator(_OFFSETS, epoch).integers(self._context))
        window = int(self._permutation(_OFFSETS, epoch)[place])
        return min(window * self._context + phase, self._last)

    def _generator(self, kind: int, epoch: int) -> np.random.Generator:
        seeds = np.random.SeedSequence([self._seed, kind, epoch])
        return np.random.Generator(np.random.Philox(seeds))

    def _draw_permutation(self, kind: int, epoch: int) -> np.ndarray:
        size = len(self._starts) if kind == _DOCUMENTS else self._num_windows
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self._seed, kind, epoch, 1]))
        ).permutation(size)


def held_out_rows(stream: TokenStream, *, context: int, max_rows: int) -> np.ndarray:
    """Returns windows of `context` tokens with stride `context` - 1: (R, L) int64.

    They are spread over the whole stream when there are more than `max_rows` of them, and the same
    for every call, so that evaluations of one run are compared on equal text.
    """
    count = (len(stream.tokens) - 1) // (context - 1)
    chosen = np.unique(np.linspace(0, count - 1, min(count, max_rows)).astype(np.int64))
    rows = [stream.tokens[i * (context - 1) :][:context] for i in chosen]
    return np.stack(rows).astype(np.int64)
