"""Which tokens a training step sees, as a pure function of (seed, step).

Half of the sequences start at a document's `<eos>`, half anywhere. Both halves are drawn without
replacement: every document start and every stretch of text comes once per pass. Nothing is kept
between steps, so resuming needs no iterator state, and N ranks that each take their part of the
global batch see exactly what one rank would see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from ...runtime.errors import ConfigError, DataError
from .shards import TokenStream

_DOCUMENTS, _OFFSETS = 1, 2
"""Names of the two random streams."""
SOURCE = "source"
"""The field of a sample that plain text has: the tokens before the sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of a training step or an evaluation."""

    ids: torch.Tensor
    """Clean tokens (B, L), any integer dtype."""
    fields: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What else belongs to each sample, by name, (B, ...) each: `source` (B, S) and the like."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | torch.Tensor) -> Batch:
        fields = {name: values[rows] for name, values in self.fields.items()}
        return Batch(ids=self.ids[rows], fields=fields)

    def to(self, device: torch.device) -> Batch:
        """Returns the samples on a device."""
        fields = {name: values.to(device) for name, values in self.fields.items()}
        return Batch(ids=self.ids.to(device), fields=fields)


class Cutter:
    """Cuts windows of a token stream into sequences and the fields that a family asks for."""

    def __init__(self, stream: TokenStream, *, context: int, fields: Mapping[str, int]) -> None:
        """Checks that the stream has what is asked for.

        Args:
            fields: Tokens of each field; text has `source` only.

        Raises:
            ConfigError: Text has no such field.
            DataError: The stream is shorter than one window.
        """
        unknown = sorted(set(fields) - {SOURCE})
        if unknown:
            raise ConfigError(
                f"the family needs {unknown[0]} for each sample; text has no such field"
            )
        self.source = fields.get(SOURCE, 0)
        self.length = self.source + context
        self._tokens = stream.tokens
        if len(self._tokens) < self.length:
            raise DataError(
                f"the text has {len(self._tokens)} tokens, and a sample takes {self.length}: give "
                "more text or a smaller --context"
            )

    def cut(self, offsets: Iterable[int]) -> Batch:
        """Reads the windows that start at `offsets`."""
        windows = np.stack([self._tokens[start : start + self.length] for start in offsets])
        rows = torch.from_numpy(windows.astype(np.int64))
        fields = {SOURCE: rows[:, : self.source]} if self.source else {}
        return Batch(ids=rows[:, self.source :], fields=fields)


class Batches:
    """Global batches of one token stream."""

    def __init__(
        self,
        stream: TokenStream,
        *,
        context: int,
        batch_size: int,
        seed: int,
        fields: Mapping[str, int] | None = None,
    ) -> None:
        """Prepares the draw; raises DlmError as Cutter does."""
        self._cutter = Cutter(stream, context=context, fields=fields or {})
        self._batch_size, self._seed = batch_size, seed
        self._window = self._cutter.length
        last = len(stream.tokens) - self._window
        self._starts = stream.starts[stream.starts <= last]
        self._num_windows = max(1, len(stream.tokens) // self._window)
        self._last = last
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    def batch(self, step: int) -> Batch:
        """Returns the global batch of a step: G samples, int64."""
        first = step * self._batch_size
        return self._cutter.cut(self._offset(first + row) for row in range(self._batch_size))

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
        phase = int(self._generator(_OFFSETS, epoch).integers(self._window))
        window = int(self._permutation(_OFFSETS, epoch)[place])
        return min(window * self._window + phase, self._last)

    def _generator(self, *numbers: int) -> np.random.Generator:
        seeds = np.random.SeedSequence([self._seed, *numbers])
        return np.random.Generator(np.random.Philox(seeds))

    def _draw_permutation(self, kind: int, epoch: int) -> np.ndarray:
        size = len(self._starts) if kind == _DOCUMENTS else self._num_windows
        return self._generator(kind, epoch, 1).permutation(size)


def held_out_batch(
    stream: TokenStream, *, context: int, max_rows: int, fields: Mapping[str, int] | None = None
) -> Batch:
    """Returns sequences of `context` tokens with stride `context` - 1: R samples, int64.

    They are spread over the whole stream when there are more than `max_rows` of them, and the same
    for every call, so that evaluations of one run are compared on equal text.
    """
    cutter = Cutter(stream, context=context, fields=fields or {})
    count = (len(stream.tokens) - cutter.source - 1) // (context - 1)
    chosen = np.unique(np.linspace(0, count - 1, min(count, max_rows)).astype(np.int64))
    return cutter.cut(int(index) * (context - 1) for index in chosen)
