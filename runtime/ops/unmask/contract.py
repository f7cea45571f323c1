"""Which masked positions a step commits.

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
