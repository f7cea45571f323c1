"""Free positions move from token to token, by steps that are driven by time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..canvas.contract import Canvas, CanvasOps, CanvasSpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransitionSpec(CanvasSpec):
    """What a canvas is made with whose free positions move."""

    transition: np.ndarray
    """(steps, 5) float64, rows of `noise.transition.transition_table`: what each step does."""


@dataclass(slots=True, kw_only=True, eq=False)
class TransitionCanvas(Canvas):
    """A block whose `masked` positions are free to move."""

    sigma: Any
    """(1,) float32: the noise that the next run is fed."""


class TransitionOps(CanvasOps[TransitionSpec, TransitionCanvas], Protocol):
    """The primitive `transition`.

    `sample` draws every free row's next token. Logits are log-ratios to the token x that stands
    there: s_y = exp(l_y), float32, and 0 at x, at banned and at disallowed ids. Their sum S gives
    s_y the weight max(s_y - offset (1 + S), 0), and with M the sum of weights (both sums in chunks,
    as `unmask` has them) the position moves if u times gain M + max(stay - slope S, 0) is less than
    gain M: `chosen`. The share of u below that, a uniform again, then draws `candidate` from the
    weights, which are first divided by the highest, raised to 1 / T and restricted to top-k and
    top-p (at temperature 0: the highest weight, the lowest id among equals). A row that holds NaN,
    or ratios that overflow, is an EngineError.

    `commit` moves the chosen positions, and `sigma` becomes the next step's. In a canvas with a
    mask they are free no more; in one without, all stay free up to the last step, and nothing is
    final before it.
    """
