"""Which masked positions each decoding rule commits, as functions of scores and draws alone.

Every function gets one value per masked position, in order of position, and returns which of them
are accepted (bool, same length, at least one unless said otherwise). Equal values go to the lowest
position. The kinds are defined in `unmask.contract`.
"""

from __future__ import annotations

import numpy as np


def quota(num_masked_at_start: int, steps: int | None, step: int) -> int:
    """Gives how many positions a fixed schedule commits in a step: at least 1."""
    if steps is None:
        return 1
    share, rest = divmod(num_masked_at_start, steps)
    return max(1, share + (1 if step < rest else 0))


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Accepts the `count` highest scores."""
    accept = np.zeros(len(scores), dtype=bool)
    if count >= len(scores):
        accept[:] = True
    elif count == 1:
        accept[scores.argmax()] = True
    else:
        accept[np.argsort(-scores, kind="stable")[:count]] = True
    return accept


def threshold(confidences: np.ndarray, limit: float) -> np.ndarray:
    """Accepts every confidence of at least `limit` (in float32), and the highest always."""
    accept = confidences >= np.float32(limit)
    accept[confidences.argmax()] = True
    return accept


def factor(confidences: np.ndarray, strength: float) -> np.ndarray:
    """Accepts the longest prefix, descending, with c_(n) >= 1 - strength / (n + 1); n = 1 always.

    The bound rises with n while c_(n) falls, so that the first failure ends the prefix, be it the
    last item's.
    """
    order = np.argsort(-confidences, kind="stable")
    bounds = 1.0 - strength / np.arange(2, len(order) + 2)
    holds = confidences[order].astype(np.float64) >= bounds
    holds[0] = True
    count = len(order) if holds.all() else int(holds.argmin())
    accept = np.zeros(len(order), dtype=bool)
    accept[order[:count]] = True
    return accept


def entropy_bound(negative_entropies: np.ndarray, bound: float) -> np.ndarray:
    """Accepts, entropy ascending, each item before which the accepted entropies sum to <= bound."""
    order = np.argsort(-negative_entropies, kind="stable")
    entropies = -negative_entropies[order].astype(np.float64)
    before = np.cumsum(entropies) - entropies
    before[0] = 0.0  # exactly: the first item is always within the bound
    count = int((before > bound).argmax()) or len(order)
    accept = np.zeros(len(order), dtype=bool)
    accept[order[:count]] = True
    return accept


def one_of(num_masked: int, uniform: float) -> np.ndarray:
    """Accepts the masked position number floor(uniform * num_masked)."""
    accept = np.zeros(num_masked, dtype=bool)
    accept[int(uniform * num_masked)] = True
    return accept
