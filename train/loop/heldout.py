"""The periodic held-out figure: a family's bound over fixed sequences and fixed noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.batches import Batch
from ..families.base import Family

EVAL_SEED = 20_011
"""Fixed, so that the evaluations of all runs use the same masks."""

Z_95 = 1.96

_COUNTED_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval."""

    nats: float
    """Bound in nats per scored token."""
    half_width: float | None
    """Half of the interval, over sequences and their noise, in nats; None: of a single sequence."""
    num_tokens: int
    """Scored tokens."""

    def __str__(self) -> str:
        """Returns the bound with its interval, in nats."""
        interval = "" if self.half_width is None else f" ± {self.half_width:.4f}"
        return f"{self.nats:.4f}{interval}"

    def to_json(self) -> dict[str, float | None]:
        """Returns the bound, and as perplexity with its interval (None without one)."""
        low = high = None
        if self.half_width is not None:
            low = math.exp(min(self.nats - self.half_width, 700))
            high = math.exp(min(self.nats + self.half_width, 700))
        return {
            "nats_per_token": self.nats,
            "half_width": self.half_width,
            "perplexity": math.exp(min(self.nats, 700)),
            "perplexity_low": low,
            "perplexity_high": high,
            "num_tokens": self.num_tokens,
        }


def measure(
    family: Family,
    model: nn.Module,
    config: Mapping[str, Any],
    batch: Batch,
    *,
    batch_size: int,
    device: torch.device,
) -> dict[str, Estimate]:
    """Evaluates a model per trained block size.

    Args:
        model: in any mode; it is put into evaluation mode and back.
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[torch.Tensor]] = {}
    for index, first in enumerate(range(0, len(batch), batch_size)):
        part = batch[first : first + batch_size].to(device)
        for name, nats in family.eval_loss(model, part, config, seed=EVAL_SEED + index).items():
            parts.setdefault(name, []).append(nats)
    model.train(was_training)
    scored = batch.ids.shape[1] - 1
    return {name: _estimate(torch.cat(nats), scored) for name, nats in parts.items()}


def _estimate(nats: torch.Tensor, scored: int) -> Estimate:
    """From nats per sequence, (R,) float64."""
    per_token = nats / scored
    spread = float(per_token.std()) if len(nats) > 1 else None
    return Estimate(
        nats=float(per_token.mean()),
        half_width=None if spread is None else Z_95 * spread / math.sqrt(len(nats)),
        num_tokens=len(nats) * scored,
    )


def frequency_nats(train: np.ndarray, rows: np.ndarray) -> float:
    """Returns the nats per token of a guess by token frequency: what a model that learnt beats.

    Args:
        train: (N,) token ids of the training text, of which a first part is counted.
        rows: (R, L) int64 held-out sequences, whose first tokens are given.
    """
    scored = rows[:, 1:]
    counts = np.bincount(train[:_COUNTED_TOKENS], minlength=int(rows.max()) + 1)
    # One more of each, so that a token which the training text lacks costs something finite.
    return float(np.log((counts.sum() + len(counts)) / (counts[scored] + 1)).mean())


def mean_nats(figures: Mapping[str, Estimate]) -> float:
    """Returns the mean over block sizes: what "best" and early stopping go by."""
    return sum(item.nats for item in figures.values()) / len(figures)
