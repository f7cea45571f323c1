"""From hidden rows to negative log-likelihoods, within bounded memory for large vocabularies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

LARGEST = 2**26
"""Logits held at once: 256 MiB in float32, a few times over in the loss and its gradient."""


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, forbidden: tuple[int, ...]
) -> torch.Tensor:
    """Negative log-probability of targets (N,) under logits (N, V), in float32 nats.

    Forbidden tokens have probability 0: their logits count as minus infinity.
    """
    logits = logits.float()
    if forbidden:
        columns = torch.tensor(forbidden, device=logits.device)
        logits = logits.index_fill(1, columns, float("-inf"))
    return F.cross_entropy(logits, targets.long(), reduction="none")


def nats_of(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, forbidden: tuple[int, ...]
) -> torch.Tensor:
    """Negative log-likelihoods (N,) float32 of targets (N,) by a head over hidden rows (N, dim).

    Few logits are computed in one go. More are computed by the slice, and again in the backward
    pass: 4,096 tokens of a vocabulary of 151,936 would take several times 5 GB otherwise.
    """
    vocab = getattr(head, "out_features", 1)
    if len(hidden) * vocab <= LARGEST:
        return cross_entropy(head(hidden), targets, forbidden)
    size = max(LARGEST // vocab, 1)

    def part(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(rows), wanted, forbidden)

    slices = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(part, *each, use_reentrant=False) for each in slices])
