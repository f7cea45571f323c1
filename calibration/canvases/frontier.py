"""Which positions of a run are about to be committed, told by what the next run sees.

Goes by the roles of a graph's inputs and knows no family.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...runtime.bundle.manifest import GraphSpec
from .canvases import Inputs


class SeenRun(Protocol):
    """What is asked of a run."""

    spec: GraphSpec
    inputs: Inputs
    canvas: np.ndarray
    start: int


def changed_rows(run: SeenRun, after: SeenRun | None, masked: np.ndarray) -> np.ndarray:
    """Gives (rows,) bool: the positions that the next run sees changed.

    If that does not look at the masked ones any more, the block is finished: all were committed.
    Rows that are told what they see are drafts and proposals: see `kept_rows`.
    """
    frontier = np.zeros(run.spec.rows, bool)
    if drafts(run.spec) and masked.any() and after is not None:
        visible = run.inputs[run.spec.tensor("visible").name]
        return kept_rows(visible, masked, after.start - run.start)
    if after is None or after.spec.name != run.spec.name:
        return masked
    first = max(run.start, after.start)
    last = min(run.start + run.spec.rows, after.start + after.spec.rows)
    seen = slice(first - run.start, max(first, last) - run.start)
    if masked.any() and not masked[seen].any():
        return masked
    old = by_position(run.canvas, run.spec.rows)[seen]
    new = by_position(after.canvas, after.spec.rows)[first - after.start :][: len(old)]
    frontier[seen] = (old != new).any(axis=1)
    return frontier


def drafts(spec: GraphSpec) -> bool:
    """Tells whether rows are told what they see: then most are proposals that come to nothing."""
    return any(tensor.role == "visible" for tensor in spec.inputs)


def kept_rows(visible: np.ndarray, masked: np.ndarray, count: int) -> np.ndarray:
    """Gives (rows,) bool: the rows that a draft-and-verify run's next tokens come from.

    Args:
        visible: (rows, rows): nonzero where a row sees another.
        masked: (rows,) bool.
        count: Drafts that were kept.

    Returns:
        The kept drafts, and the masks of the proposal that sees just these.
    """
    seen_drafts = (visible[:, ~masked] > 0).sum(axis=1)
    return np.where(masked, seen_drafts == count, np.cumsum(~masked) <= count)


def by_position(canvas: np.ndarray, num_rows: int) -> np.ndarray:
    """Gives (num_rows, …) of a canvas (batch, rows, …): everything that stands at one position.

    Canvases of another length (drafts with their proposals) are cut or cycled.
    """
    rows = np.moveaxis(canvas, 1, 0).reshape(canvas.shape[1], -1)
    return rows if len(rows) == num_rows else np.resize(rows, (num_rows, rows.shape[1]))
