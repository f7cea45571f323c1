"""The distribution that a transition step draws from: its definition, in float64."""

import numpy as np


def probabilities(
    log_score: np.ndarray, ids: np.ndarray, row: np.ndarray, states: np.ndarray
) -> np.ndarray:
    """Gives each position's whole distribution after a step.

    Args:
        log_score: (n, V) log s_y; the own column and those of no state are not read.
        ids: (n,) the tokens x; under absorb the MASK id.
        row: (5,) of `transition_table`.
        states: (V,) bool: what may be moved to.

    Returns:
        (n, V) float64, rows sum to 1.
    """
    _, gain, offset, stay, slope = row
    index = np.arange(len(ids))
    score = np.where(states, np.exp(np.where(states, log_score, 0.0), dtype=np.float64), 0.0)
    score[index, ids] = 0.0
    total = score.sum(axis=1)
    out = gain * np.maximum(score - (offset * (1.0 + total))[:, None], 0.0)
    out[:, ~states] = 0.0
    out[index, ids] = np.maximum(stay - slope * total, 0.0)
    return out / out.sum(axis=1, keepdims=True)
