"""What the families' bounds share: stratified levels, masked sets, and -log p of known ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..noise.philox import DrawKind, uniforms


def levels(num_blocks: int, seed: int, sample: int) -> np.ndarray:
    """Gives each block's level in (0, 1): one per stratum, in an order of this pair's own."""
    pair = sample // 2
    draws = uniforms(seed, 0, np.arange(num_blocks + 1), pair, DrawKind.LEVEL)
    rank = np.empty(num_blocks, np.int64)
    rank[np.argsort(draws[1:], kind="stable")] = np.arange(num_blocks)
    level = (rank + draws[0]) / num_blocks
    return 1.0 - level if sample % 2 else level


def masked_set(draws: np.ndarray, start: int, level: float) -> tuple[np.ndarray, float]:
    """Gives the masked indices of a block, ascending, and their weight M / k."""
    scored = np.arange(1 if start == 0 else 0, len(draws))
    if not len(scored):
        return scored, 0.0
    count = min(1 + int(level * len(scored)), len(scored))
    order = np.argsort(draws[scored], kind="stable")
    return np.sort(scored[order[:count]]), len(scored) / count


def negative_log_likelihood(
    rows: np.ndarray, targets: np.ndarray, banned: Sequence[int]
) -> np.ndarray:
    """Gives -log softmax(rows)[target] in nats, banned ids left out.

    Args:
        rows: (k, vocab) float32 or float16 logits.
        targets: (k,) integer ids.
        banned: Ids of probability 0.

    Returns:
        (k,) float64.
    """
    work = rows.astype(np.float32)
    work[:, list(banned)] = -np.inf
    chosen = work[np.arange(len(work)), targets].astype(np.float64)
    top = work.max(axis=1, keepdims=True)
    np.subtract(work, top, out=work)
    np.exp(work, out=work)
    total = work.sum(axis=1, dtype=np.float64)
    return top[:, 0].astype(np.float64) + np.log(total) - chosen
