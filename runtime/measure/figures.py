"""Figures of sets of texts with 95 % intervals, alone and in pairs.

Of each text a row of statistics is kept; a figure is a function of the rows' sum. Texts drawn with
replacement give the figure's interval; the same draws for two sets of equal prompts give the
interval of their difference, in which the difficulty of a prompt cancels (Efron and Tibshirani
1993, chapters 6 and 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS = 1000
Sums = NDArray[np.float64]
"""(..., K): of each draw, what the rows add up to."""


def _ratio(sums: Sums) -> Sums:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


def _perplexity(sums: Sums) -> Sums:
    return np.exp(np.minimum(_ratio(sums), 700.0))


def _bleu(sums: Sums) -> Sums:
    """Corpus BLEU in percent of (matches of 1 to 4 words, n-grams of 1 to 4, words, reference
    words) without smoothing (Papineni et al. 2002)."""
    matches, grams, words, wanted = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / grams).mean(axis=-1))
        brevity = np.exp(np.minimum(0.0, 1 - wanted / words))
    return np.where((matches > 0).all(axis=-1), 100 * precision * brevity, 0.0)


FORMS: Mapping[str, Callable[[Sums], Sums]] = {
    "ratio": _ratio, "perplexity": _perplexity, "bleu": _bleu,
}  # fmt: skip


class Interval(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Returns the three by name; None for what no text had a value of."""
        return {
            name: value if math.isfinite(value) else None for name, value in self._asdict().items()
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure of a set of texts, and what it is made of."""

    rows: NDArray[np.float64]
    """(N, K) statistics of each text; zeros for a text that counts for nothing."""
    form: str = "ratio"
    """How the rows' sum becomes the figure; a key of `FORMS`."""
    value: float | None = None
    """None: of the rows. Else of all texts together, where the rows are only its jackknife."""

    @classmethod
    def mean(cls, values: Sequence[float | None], value: float | None = None) -> Measured:
        """Gives the mean of one value per text; None where a text has none."""
        rows = [(0.0, 0.0) if one is None else (one, 1.0) for one in values]
        return cls(np.array(rows, np.float64).reshape(-1, 2), value=value)

    @property
    def figure(self) -> float:
        """The figure itself."""
        if self.value is not None:
            return self.value
        return float(FORMS[self.form](self.rows.sum(axis=0)))

    def draws(self, seed: int = 0) -> NDArray[np.float64]:
        """Returns the figure of each of `NUM_DRAWS` sets of texts drawn with replacement."""
        number = len(self.rows)
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(number, np.full(number, 1 / number), size=NUM_DRAWS)
        found = FORMS[self.form](weights @ self.rows)
        if self.value is None:
            return found
        return found + self.value - float(FORMS[self.form](self.rows.sum(axis=0)))

    def interval(self) -> Interval:
        """Returns the figure with its interval over texts."""
        return Interval(self.figure, *_quantiles(self.draws()))

    def to_json(self) -> dict[str, Any]:
        """Returns value, interval, form and rows, of which `of_json` makes it again."""
        found = {**self.interval().to_json(), "form": self.form, "rows": self.rows.tolist()}
        return found if self.value is None else {**found, "jackknife": True}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Measured:
        """Reads what `to_json` gave."""
        rows = np.array(found["rows"], np.float64)
        return cls(rows, found["form"], found["value"] if found.get("jackknife") else None)


def difference(first: Measured, second: Measured) -> Interval:
    """Returns `second` minus `first`; in pairs where both have as many texts."""
    pairs = len(first.rows) == len(second.rows)
    draws = second.draws(0 if pairs else 1) - first.draws()
    return Interval(second.figure - first.figure, *_quantiles(draws))


def ratio(first: Measured, second: Measured) -> Interval:
    """Returns `second` over `first`; in pairs where both have as many texts."""
    pairs = len(first.rows) == len(second.rows)
    draws = second.draws(0 if pairs else 1) / first.draws()
    return Interval(second.figure / first.figure, *_quantiles(draws))


def _quantiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    found = draws[np.isfinite(draws)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
