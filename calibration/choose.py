"""Which set of canvases ships: the simpler one, clean text, if it does as well as decoding."""

from __future__ import annotations

from collections.abc import Mapping

from .losses.loss import Ratio
from .losses.quality import Figures


def choose(comparison: Mapping[str, Figures], against_decoding: Mapping[str, Ratio]) -> str:
    """Names the set to ship: clean text, the simpler one, unless it does worse.

    Worse is a higher perplexity under equal masks, by more than the draws explain, or fewer equal
    tokens at the positions about to be committed, by more than half a per cent.
    """
    if "clean" not in comparison:
        return "decode"
    soon = {
        name: comparison[name].agreement["about_to_be_committed"]["top1"]
        for name in ("clean", "decode")
    }
    as_likely = against_decoding["clean"].low <= 1.0
    as_faithful = soon["clean"] >= soon["decode"] - 0.005
    return "clean" if as_likely and as_faithful else "decode"
