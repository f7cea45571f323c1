"""The device-side seam: what a family must say about decoding, and nothing else.

`generate.py` runs `while not rule.done: engine(rule.next_run()) ; rule.update()` and knows no
family. A family = one module with an `UpdateRule` factory and its bound, and one line in
`families/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..engines.base import Engine, EngineSet
from ..manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of the canvas that changed: what an update tells its caller."""

    position: int
    """Absolute position of the first token (0 is the start token)."""
    token_ids: tuple[int, ...]
    """Ids from `position` on; masked positions of a provisional canvas hold the mask id."""
    committed: bool
    """Committed tokens never change again; provisional ones may."""
    fixed: tuple[bool, ...] | None = None
    """For provisional spans: which positions are already unmasked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to generate, in token ids."""

    prompt_ids: tuple[int, ...]
    """Ids before the generated text, start token included."""
    max_tokens: int
    """New tokens at most."""
    seed: int
    sample_index: int
    """Which of several samples of one seed: different indices give different texts."""
    template_ids: tuple[int, ...] | None = None
    """Infilling: the whole canvas, the mask id at each position to fill."""
    settings: Any = None
    """Decoding settings (`decoding.DecodingSettings`)."""


class UpdateRule(Protocol):
    """One request being decoded; its state is its own."""

    @property
    def done(self) -> bool:
        """True when nothing more will change."""
        ...

    def next_run(self) -> tuple[str, int, int]:
        """Says which graph to run next: (graph name, block, context)."""
        ...

    def feed(self, engine: Engine) -> None:
        """Writes the inputs of the run into the engine's buffers."""
        ...

    def update(self, engine: Engine) -> Iterator[Span]:
        """Applies the run's outputs to the canvas; yields what changed."""
        ...

    @property
    def tokens(self) -> np.ndarray:
        """Committed ids of the whole canvas so far, int32, start token and prompt included."""
        ...


class DeviceFamily(Protocol):
    """What `families/__init__.py` lists: how to start a request, and how good the model is."""

    name: str

    def start(
        self, manifest: Manifest, engines: EngineSet, ops: Any, request: Request
    ) -> UpdateRule:
        """Makes the first canvas of a request; raises ConfigError if it cannot be served."""
        ...

    def bound(
        self, manifest: Manifest, engines: EngineSet, windows: np.ndarray, *, seed: int, sample: int
    ) -> Iterator[np.ndarray]:
        """Yields, per window (N, L) int32, its per-position negative log-likelihood bound in nats.

        Position 0 is given and scores 0. `sample` numbers the Monte-Carlo draw; families whose
        likelihood is exact yield the same for every sample.
        """
        ...
