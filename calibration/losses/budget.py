"""The fewest layers in floating point that bring the whole within a budget of perplexity.

Layers are given up in the order of what they cost alone. Their costs do not quite add up, so the
whole is measured again for every number tried: by bisection, which finds the smallest number if
more layers in floating point never cost more, and in any case one that was measured to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import CalibrationError
from ..scales.plan import Plan
from .loss import Ratio
from .sensitivity import LayerCost, Measure, without


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One plan that was measured as a whole."""

    num_float: int
    """Layers kept in floating point for the budget."""
    ratio: Ratio

    def to_json(self) -> dict[str, Any]:
        """Returns the figures for a report."""
        return {"num_float": self.num_float, "ratio": self.ratio.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a budget."""

    plan: Plan
    """The one to ship: within the budget, or the best there is."""
    ratio: Ratio
    met: bool
    num_float: int
    trials: tuple[Trial, ...]
    """All that was measured, in the order of `num_float`."""

    def require(self, max_loss: float, num_layers: int, *, force: bool) -> None:
        """Raises CalibrationError for a budget that was not met, unless forced."""
        if self.met or force:
            return
        raise CalibrationError(
            f"--max-loss {100 * max_loss:g} cannot be met: the best plan, with {self.num_float} of "
            f"{num_layers} layers in floating point, loses {100 * self.ratio.loss:.2f} % of "
            f"perplexity{self.ratio.place} (up to {100 * (self.ratio.high - 1):.2f} % with 95 %); "
            "nothing was written: allow that much, give more --calibration-data, or pass --force"
        )

    def require_int8(self, max_loss: float, *, force: bool) -> None:
        """Raises CalibrationError for a plan that leaves nothing in int8, unless forced."""
        if force or any(layer.precision != "float" for _, _, layer in self.plan.layers()):
            return
        raise CalibrationError(
            f"no layer can be int8 within --max-loss {100 * max_loss:g} by this plan; nothing was "
            "written: export with --precision fp16, allow more, or pass --force"
        )


def fits(ratio: Ratio, max_loss: float) -> bool:
    """True if even the upper end of the interval is within the budget."""
    return ratio.high - 1.0 <= max_loss


def single_trial(plan: Plan, ratio: Ratio, max_loss: float) -> Outcome:
    """Returns the outcome of a plan that is taken as it is, such as an edited one."""
    num_float = sum(layer.precision == "float" for _, _, layer in plan.layers())
    trial = Trial(num_float=num_float, ratio=ratio)
    return Outcome(
        plan=plan, ratio=ratio, met=fits(ratio, max_loss), num_float=num_float, trials=(trial,)
    )


def fit_budget(
    plan: Plan,
    costs: Sequence[LayerCost] | Callable[[], Sequence[LayerCost]],
    measure: Measure,
    max_loss: float,
) -> Outcome:
    """Finds the plan to ship.

    Args:
        plan: Everything quantised that may be.
        costs: Of its layers, most expensive first; a function is called only if the plan does not
            fit as it is.
        measure: Measures a whole plan.
        max_loss: Share of perplexity that may be lost, for example 0.005.
    """
    trials: dict[int, Trial] = {}
    known: tuple[LayerCost, ...] = ()

    def attempt(count: int) -> bool:
        if count not in trials:
            ratio = measure(without(plan, known, count))
            trials[count] = Trial(num_float=count, ratio=ratio)
        return fits(trials[count].ratio, max_loss)

    def outcome(count: int, met: bool) -> Outcome:
        return Outcome(
            plan=without(plan, known, count),
            ratio=trials[count].ratio,
            met=met,
            num_float=count,
            trials=tuple(trials[number] for number in sorted(trials)),
        )

    if attempt(0):
        return outcome(0, True)
    known = tuple(costs() if callable(costs) else costs)
    # Nothing below `low` is known to fit; `high` fits once it has been measured.
    low, high = 0, len(known)
    if not attempt(high):
        best = min(trials.values(), key=lambda trial: trial.ratio.high)
        return outcome(best.num_float, False)
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(middle):
            high = middle
        else:
            low = middle
    return outcome(high, True)
