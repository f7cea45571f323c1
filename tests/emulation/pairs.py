"""What the package compares kernels by, as assertions, and pairs of the settings of a rule."""

from dlm_edge.runtime.ops.core import MAX_TIE_SHARE
from dlm_edge.runtime.ops.rows.compare import commit, on_device
from dlm_edge.runtime.ops.unmask.compare import SAMPLINGS, Pair, random_logits, sample_faults

__all__ = ["HEATS", "MAX_TIE_SHARE", "Pair", "commit", "compare_samples", "make_pair", "on_device",
           "random_logits"]  # fmt: skip

HEATS = tuple(
    {
        name: value
        for name in ("temperature", "top_k", "top_p")
        if (value := getattr(sampling, name)) is not None
    }
    for sampling in SAMPLINGS
)


def make_pair(settings, **fields) -> Pair:
    """Makes a pair of canvases that decode by a rule's settings."""
    return Pair.make(sampling=settings.sampling, selection=settings.selection, **fields)


def compare_samples(pair):
    """Returns (rows drawn, rows whose tokens differ at a boundary); anything else fails."""
    rows, ties, faults = sample_faults(pair)
    assert not faults
    return rows, ties
