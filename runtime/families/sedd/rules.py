"""The decoding rules of score-entropy diffusion: how a step moves the free positions of a canvas.

| rule | moves per step |
|---|---|
| `tweedie` | every free position may move, by the analytic posterior |
| `euler` | the same by the rates of the reverse process, for small steps |

`transition` has the formulas. Temperature, top-k and top-p act on where a position moves, not on
whether it does, so that they mean the same at any number of steps. Both end at their last step.

Source: SEDD (arXiv 2310.16834).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...decoding import EXACT, BlockRule
from ...ops.rows.contract import Sampling
from ...options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDecoding(BlockRule):
    """A rule that moves positions by the score that the model gives."""

    ignores: ClassVar[tuple[str, ...]] = ("repetition_penalty",)
    sampling: Sampling = EXACT
    steps: int | None = option(
        None, at_least=1, help="Steps per canvas; not set: one per position."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tweedie(ScoreDecoding):
    """Moves tokens by the analytic posterior of each step."""

    name: ClassVar[str] = "tweedie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Euler(ScoreDecoding):
    """Moves tokens by the rates of the reverse process, for small steps."""

    name: ClassVar[str] = "euler"
