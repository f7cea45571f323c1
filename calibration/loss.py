"""What a change costs: the same text under the same masks, before and after, as a ratio.

Perplexities of one text are known to a per cent or so, because masks are drawn; the ratio of two
under equal masks is known a hundred times better, for the draws cancel. So nothing here compares
two perplexities that were measured apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..runtime.engines.base import EngineSet
from ..runtime.evaluate import Progress, bound_totals, half_width
from ..runtime.families import find_family
from ..runtime.families.window import choose_block, contexts_by_block
from ..runtime.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Perplexity over that of the reference; low and high enclose it with 95 % over the masks."""

    value: float
    low: float
    high: float

    @property
    def loss(self) -> float:
        """Share of perplexity lost: 0.005 is half a per cent; below 0 it was gained."""
        return self.value - 1.0

    def to_json(self) -> dict[str, float]:
        """Returns the figures for a report."""
        return asdict(self)


def default_block(manifest: Manifest) -> int:
    """Gives the one block size that losses are measured by: what decoding takes unless asked."""
    shapes = contexts_by_block(manifest.graphs, manifest.graphs[0].name)
    return choose_block(shapes, None, manifest.block_sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossText:
    """A text to measure on, cut into windows, and the draws."""

    windows: Sequence[np.ndarray]
    """Each (L,) int32."""
    num_samples: int
    """Masks per window; even. Families with an exact likelihood need 1."""
    seed: int

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return sum(len(window) - 1 for window in self.windows)

    def shortened(self, num_tokens: int) -> LossText:
        """Returns the first windows, at least one, that hold so many tokens."""
        kept, held = [], 0
        for window in self.windows:
            if kept and held >= num_tokens:
                break
            kept.append(window)
            held += len(window) - 1
        return LossText(windows=kept, num_samples=self.num_samples, seed=self.seed)

    def totals(
        self, manifest: Manifest, engines: EngineSet, progress: Progress | None = None
    ) -> np.ndarray:
        """Measures the bound on some engines: (samples, windows) float64 nats."""
        exact = find_family(manifest.family).exact
        samples = range(1 if exact else self.num_samples)
        return bound_totals(
            manifest, engines, self.windows, samples=samples, seed=self.seed, progress=progress
        )

    def ratio(self, found: np.ndarray, reference: np.ndarray) -> Ratio:
        """Compares two results of `totals`, in pairs."""
        change = found - reference
        nats = float(change.mean(axis=0).sum()) / self.num_tokens
        margin = half_width(change, self.num_tokens)
        return Ratio(
            value=math.exp(nats), low=math.exp(nats - margin), high=math.exp(nats + margin)
        )

    def perplexity(self, totals: np.ndarray) -> dict[str, Any]:
        """Returns the perplexity itself with its interval, for a report."""
        nats = float(totals.mean(axis=0).sum()) / self.num_tokens
        margin = half_width(totals, self.num_tokens)
        return {
            "perplexity": math.exp(nats),
            "low": math.exp(nats - margin),
            "high": math.exp(nats + margin),
        }
