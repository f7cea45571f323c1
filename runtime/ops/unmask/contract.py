"""Masked positions are given tokens: which of them a step commits, and what they are.

| kind | commits per step |
|---|---|
| `QUOTA` | floor(M / steps) highest scores, 1 more in the first M % steps |
| `THRESHOLD` | every score >= limit, and the highest always |
| `FACTOR` | the longest prefix, score c falling, with c_(n) >= 1 - limit / (n + 1); n = 1 always |
| `ENTROPY_BOUND` | item k, entropy H ascending, while the sum of H before it <= limit |
| `RANDOM` | as many as `QUOTA`, by a uniform draw |
| `FIRST_HITTING` | one masked position, uniformly; time t <- t u^(1/k) with k masked |
| `ANCESTRAL` | each masked position by the canvas's chance of the step; all at the last step |

M is the number of masked positions at the block's start. Equal scores go to the lowest position.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from ..canvas.contract import Canvas, CanvasOps, CanvasSpec

if TYPE_CHECKING:
    import numpy as np


class Kind(IntEnum):
    """How positions are selected; kernels use the same numbers (enum Kind)."""

    QUOTA = 0
    THRESHOLD = 1
    FACTOR = 2
    ENTROPY_BOUND = 3
    RANDOM = 4
    FIRST_HITTING = 5
    ANCESTRAL = 6


class Score(IntEnum):
    """What orders candidates, higher first; kernels use the same numbers (enum Score).

    All belong to the model's distribution at temperature 1, before top-k and top-p.
    """

    NONE = 0
    CONFIDENCE = 1
    """p(candidate)."""
    ENTROPY = 2
    """-H of the row, in nats."""
    MARGIN = 3
    """p(first) - p(second)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which masked positions a step commits; see the module's documentation."""

    kind: Kind
    score: Score = Score.NONE
    """NONE for the kinds that choose first, and where a block has one position."""
    steps: int | None = None
    """`QUOTA` and `RANDOM`: steps per block; None: one position per step."""
    limit: float = 0.0
    """`THRESHOLD`, `FACTOR`, `ENTROPY_BOUND`: the number that the kind compares with."""

    @property
    def chooses_first(self) -> bool:
        """True when positions are chosen before tokens are drawn, so that only those are read."""
        return self.kind >= Kind.RANDOM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnmaskSpec(CanvasSpec):
    """What a canvas is made with whose masked positions are committed."""

    selection: Selection
    unmask_chance: np.ndarray | None = None
    """(steps,) float64: per step, the chance that a masked position is unmasked (`ANCESTRAL`)."""
    sees_time: bool = False
    """Whether the graph sees time, so that `time_input` is wanted."""
    times: np.ndarray | None = None
    """(steps + 1,) float32: the share of masks before each step, where the selection is driven by
    time; None: it is counted."""
    sub_block: int | None = None
    """Positions of a block's parts, of which a step commits in the first that has masks; None: in
    the whole block."""
    shifted: str | None = None
    """dtype of logits whose row i speaks for position i + 1, `before` for the block's first; None:
    each row speaks for its own position."""
    first_alone: bool = False
    """Whether the block's first position is committed before all others: no logits but `before` are
    needed for it."""


@dataclass(slots=True, kw_only=True, eq=False)
class UnmaskCanvas(Canvas):
    """A block whose masked positions are committed."""

    score: Any
    """(1, block) float32: what orders the candidates, higher first."""
    log_prob: Any
    """(1, block) float32: log-probability of the candidate under the model's own distribution
    (temperature 1, before top-k and top-p); kept for committed positions."""
    time_input: Any
    """(1, block) float32, or None: the share of masks that the next run is fed, for graphs that
    see it: of `times`, or counted; 0 once nothing is left to fill."""
    seen: Any
    """(1, vocab) bool, or None: tokens of the text so far, kept only under a repetition
    penalty."""
    before: Any
    """(1, 1, vocab), or None: the row that speaks for the block's first position, where logits are
    shifted; the caller writes it."""


class UnmaskOps(CanvasOps[UnmaskSpec, UnmaskCanvas], Protocol):
    """The primitive `unmask`.

    `sample` gives every masked row that the step may commit (or every chosen one) a candidate,
    its log_prob and its score. A row's logits l become l + bias, then the repetition penalty on
    seen tokens, then -inf on banned and disallowed ids. At temperature 0 the candidate is the
    highest, the lowest id among equals. Otherwise weights w = exp((l - max l) / T), float32,
    restricted to the top k and then, within them, to the smallest set of highest weights whose
    share reaches top_p (equal weights: lower ids first); the candidate is drawn from them by
    `TOKEN`'s uniform u at (position, step): with chunk sums of 64 weights, each summed in
    float32 in eight interleaved partial sums s_j = w_j + w_(j+8) + ..., joined
    ((s0+s1)+(s2+s3))+((s4+s5)+(s6+s7)), and accumulated in float64 in order, it lies in the
    first chunk whose cumulative sum exceeds u times the total, and is the first id there at
    which the running float64 sum does. (A device accumulates integers, in units of 2^-46 of the
    highest chunk sum: the same to 1e-10 of the total.) A row that holds NaN, or no finite logit
    that is allowed, is an EngineError.

    `commit` scatters the selected candidates into `ids`, clears them in `masked`, counts the step,
    and ends the text at the first end-of-text token that has no mask before it. `time_input`
    becomes the next run's.
    """

    def mark_seen(self, canvas: UnmaskCanvas, ids: np.ndarray) -> None:
        """Makes the repetition penalty count ids (host, int32) that are not of the canvas."""
        ...
