"""What the package compares kernels by, as assertions."""

from dlm_edge.runtime.ops.compare import (
    HEATS,
    MAX_TIE_SHARE,
    Pair,
    on_device,
    random_logits,
    sample_faults,
)

__all__ = ["HEATS", "MAX_TIE_SHARE", "Pair", "compare_samples", "on_device", "random_logits"]


def compare_samples(pair):
    """Returns (rows drawn, rows whose tokens differ at a boundary); anything else fails."""
    rows, ties, faults = sample_faults(pair)
    assert not faults
    return rows, ties
