"""KV caches of earlier texts, kept on the host for texts that go on from them.

Engines hold the cache of one text; a server has several conversations. What a conversation has
cached is copied out when another text comes in its place, and back when its next turn comes. Knows
no family and no conversation: it goes by token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bundle.manifest import GraphKey, GraphSpec
from .families.base import LoadedModel, Request
from .generate import HeldText


@dataclass(frozen=True, slots=True)
class _Kept:
    held: HeldText
    key: GraphKey
    """The shape whose inputs were copied."""
    arrays: dict[str, np.ndarray]
    """By input's name."""

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class KeptTexts:
    """The caches of some texts, the longest unused dropped first."""

    def __init__(self, model: LoadedModel, max_bytes: int) -> None:
        self._model, self.max_bytes = model, max_bytes
        self._texts: list[_Kept] = []
        """The one used last at the end."""

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        return sum(text.nbytes for text in self._texts)

    def keep(self, held: HeldText) -> None:
        """Copies what the engines hold of a text, unless it is too large."""
        spec = self._smallest(len(held.ids)) if held.ids else None
        if spec is None:
            return
        engine, ops = self._model.engines.engine(spec), self._model.ops
        names = [tensor.name for tensor in spec.inputs if tensor.cache is not None]
        arrays = {name: np.array(ops.to_host(engine.inputs[name])) for name in names}
        # A text takes the place of what it goes on from.
        self._texts = [
            text for text in self._texts if held.ids[: len(text.held.ids)] != text.held.ids
        ]
        self._texts.append(_Kept(held, spec.key, arrays))
        while self.nbytes > self.max_bytes:
            self._texts.pop(0)

    def bring(self, request: Request, ids: Sequence[int], least: int) -> int:
        """Copies the cache back that serves a text best, if it serves for more than `least` ids.

        Returns:
            How many of the text's first ids the engines now hold; 0: nothing was brought.
        """
        settings = self._model.settings(request.settings)
        found = [text.held.num_common(ids, settings, request.conditions) for text in self._texts]
        best = max(range(len(found)), key=found.__getitem__, default=None)
        if best is None or found[best] <= least:
            return 0
        text = self._texts.pop(best)
        self._texts.append(text)
        (spec,) = (spec for spec in self._model.specs if spec.key == text.key)
        engine = self._model.engines.engine(spec)
        for name, array in text.arrays.items():
            self._model.ops.assign(engine.inputs[name], array)
        return found[best]

    def _smallest(self, rows: int) -> GraphSpec | None:
        """Gives the smallest shape of one text whose caches hold so many rows; a smaller context
        is a prefix of a larger one (`engines/buffers.py`)."""
        fitting = [
            spec
            for spec in self._model.specs
            if spec.batch == 1 and spec.new_rows and spec.context >= rows
        ]
        return min(fitting, key=lambda spec: spec.context, default=None)
