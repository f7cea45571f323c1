"""What a change costs: the same text under the same masks, before and after, as a ratio.

Perplexities of one text are known to a per cent or so, because masks are drawn; the ratio of two
under equal masks is known a hundred times better, for the draws cancel. So nothing here compares
two perplexities that were measured under different masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...runtime.families.base import LoadedModel
from ...runtime.measure.evaluate import (
    Progress,
    bound_totals,
    exp_nats,
    half_width,
    windows_of,
)
from ..canvases.modes import modes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Perplexity over that of the reference; low and high enclose it with 95 % over the masks."""

    value: float
    low: float
    high: float
    block: int | None = None
    """Block size it was measured at; None where a family has no choice."""

    @property
    def loss(self) -> float:
        """Share of perplexity lost: 0.005 is half a per cent; below 0 it was gained."""
        return self.value - 1.0

    @property
    def place(self) -> str:
        """Says at which block size, in words that follow a figure."""
        return "" if self.block is None else f" at blocks of {self.block}"


def worst(ratios: Iterable[Ratio]) -> Ratio:
    """Returns the ratio that a budget must hold for: the one whose interval reaches highest."""
    return max(ratios, key=lambda ratio: ratio.high)


def decoded_blocks(model: LoadedModel) -> tuple[int | None, ...]:
    """Lists the block sizes that texts are decoded or filled by, the default one first.

    These are the sizes the model has learnt and a request may ask for; (None,) for a family that
    has no choice, or whose likelihood does not depend on it.
    """
    if model.family.exact:
        return (None,)
    sizes = dict.fromkeys(mode.block for mode in modes_of(model) if mode.block)
    if not sizes:
        return (None,)
    usual = model.family.windows(model.manifest, model.specs, None).block
    return tuple(sorted(sizes, key=lambda size: (size != usual, size)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossText:
    """A text to measure on, cut into windows, and the draws."""

    windows: Sequence[np.ndarray]
    """Each (L,) int32."""
    num_samples: int
    """Masks per window; even. Families with an exact likelihood need 1."""
    seed: int
    block: int | None = None
    """Block size it is read by; None where a family has no choice."""

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
        return replace(self, windows=kept)

    def totals(self, model: LoadedModel, progress: Progress | None = None) -> np.ndarray:
        """Measures the bound on some engines: (samples, windows) float64 nats."""
        samples = range(1 if model.family.exact else self.num_samples)
        return bound_totals(
            model, self.windows, samples=samples, seed=self.seed,
            block_size=self.block, progress=progress,
        )  # fmt: skip

    def ratio(self, found: np.ndarray, reference: np.ndarray) -> Ratio:
        """Compares two results of `totals`, in pairs."""
        change = found - reference
        nats = float(change.mean(axis=0).sum()) / self.num_tokens
        margin = half_width(change, self.num_tokens)
        return Ratio(
            value=exp_nats(nats),
            low=exp_nats(nats - margin),
            high=exp_nats(nats + margin),
            block=self.block,
        )

    def perplexity(self, totals: np.ndarray) -> dict[str, Any]:
        """Returns the perplexity itself with its interval, for a report."""
        return dict(zip(("perplexity", "low", "high"), self._perplexity(totals), strict=True))

    def _perplexity(self, totals: np.ndarray) -> tuple[float, float, float]:
        nats = float(totals.mean(axis=0).sum()) / self.num_tokens
        margin = half_width(totals, self.num_tokens)
        return exp_nats(nats), exp_nats(nats - margin), exp_nats(nats + margin)


def cut_texts(
    model: LoadedModel, stream: np.ndarray, *, num_samples: int, seed: int
) -> tuple[LossText, ...]:
    """Cuts one stream (n,) int32 into windows for every block size of `decoded_blocks`.

    Raises:
        DataError: The stream is shorter than a block.
    """
    return tuple(
        LossText(
            windows=windows_of(model, stream, block_size=block),
            num_samples=num_samples,
            seed=seed,
            block=block,
        )
        for block in decoded_blocks(model)
    )
