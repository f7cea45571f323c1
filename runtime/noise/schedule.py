"""Noise schedules of masked diffusion, on floats, NumPy arrays and torch tensors alike.

A schedule says with what chance m(t) = 1 - exp(-sigma(t)) a token is masked at time t in [0, 1],
and how much a masked token's cross-entropy weighs in the bound: sigma'(t) / (exp(sigma(t)) - 1),
which equals m'(t) / m(t). Every formula below is written in the form that loses no digits near
t = 0. Knows no model and no torch: tensors work because they have the arithmetic and the methods
that are dispatched to here.

Source: MDLM (arXiv 2406.07524), section 3.5 and appendix E.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from ..errors import ConfigError

T = TypeVar("T")
"""float, NumPy array or torch tensor; what goes in comes out."""


def apply(function: str, x: T) -> T:
    """Applies an elementwise function by name: x's own method (torch), else NumPy's."""
    method = getattr(x, function, None)
    if callable(method):
        return cast("T", method())
    result = getattr(np, function)(x)
    return cast("T", float(result) if isinstance(x, float | int) else result)


class NoiseSchedule(Protocol):
    """What every schedule offers; t is in [0, 1], m in [0, m(1)]."""

    def move_chance(self, t: T) -> T:
        """Chance m(t) that a token is masked."""
        ...

    def sigma(self, t: T) -> T:
        """Total noise: -log(1 - m(t))."""
        ...

    def rate(self, t: T) -> T:
        """sigma'(t): noise per time, what a score entropy weighs in the bound."""
        ...

    def weight(self, t: T) -> T:
        """Weight of a masked token's cross-entropy in the bound, for t > 0."""
        ...

    def time(self, move_chance: T) -> T:
        """Inverse of `move_chance`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loglinear:
    """m(t) = (1 - eps) t: the masked share grows evenly; the weight is 1 / t."""

    eps: float = 1e-3
    """Share of tokens that stay unmasked at t = 1."""

    def __post_init__(self) -> None:
        _check("loglinear", "eps", self.eps, 0.0, 0.5)

    def move_chance(self, t: T) -> T:
        return cast("T", (1.0 - self.eps) * cast("Any", t))

    def sigma(self, t: T) -> T:
        return cast("T", -cast("Any", apply("log1p", -cast("Any", self.move_chance(t)))))

    def rate(self, t: T) -> T:
        kept = 1.0 - cast("Any", self.move_chance(t))
        return cast("T", (1.0 - self.eps) / kept)

    def weight(self, t: T) -> T:
        return cast("T", 1.0 / cast("Any", t))

    def time(self, move_chance: T) -> T:
        return cast("T", cast("Any", move_chance) / (1.0 - self.eps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """sigma(t) = sigma_max t: the rate is constant, most tokens are masked early."""

    sigma_max: float = 10.0
    """Total noise at t = 1."""

    def __post_init__(self) -> None:
        _check("linear", "sigma_max", self.sigma_max, 1e-6, 100.0)

    def move_chance(self, t: T) -> T:
        return cast("T", -cast("Any", apply("expm1", -cast("Any", self.sigma(t)))))

    def sigma(self, t: T) -> T:
        return cast("T", self.sigma_max * cast("Any", t))

    def rate(self, t: T) -> T:
        return cast("T", self.sigma_max + 0.0 * cast("Any", t))

    def weight(self, t: T) -> T:
        return cast("T", self.sigma_max / cast("Any", apply("expm1", self.sigma(t))))

    def time(self, move_chance: T) -> T:
        sigma = -cast("Any", apply("log1p", -cast("Any", move_chance)))
        return cast("T", sigma / self.sigma_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """1 - m(t) = eps + (1 - eps) cos(pi t / 2): few tokens are masked at small t."""

    eps: float = 1e-3
    """Share of tokens that stay unmasked at t = 1."""

    def __post_init__(self) -> None:
        _check("cosine", "eps", self.eps, 0.0, 0.5)

    def move_chance(self, t: T) -> T:
        """Returns the chance; 1 - cos x is computed as 2 sin^2(x / 2)."""
        sine = cast("Any", apply("sin", cast("Any", t) * (math.pi / 4)))
        return cast("T", (2.0 * (1.0 - self.eps)) * (sine * sine))

    def sigma(self, t: T) -> T:
        return cast("T", -cast("Any", apply("log1p", -cast("Any", self.move_chance(t)))))

    def rate(self, t: T) -> T:
        kept = 1.0 - cast("Any", self.move_chance(t))
        sine = cast("Any", apply("sin", cast("Any", t) * (math.pi / 2)))
        return cast("T", (math.pi / 2) * (1.0 - self.eps) * sine / kept)

    def weight(self, t: T) -> T:
        return cast("T", (math.pi / 2) / cast("Any", apply("tan", cast("Any", t) * (math.pi / 4))))

    def time(self, move_chance: T) -> T:
        share = cast("Any", move_chance) / (2.0 * (1.0 - self.eps))
        name = "asin" if callable(getattr(share, "asin", None)) else "arcsin"
        return cast("T", cast("Any", apply(name, apply("sqrt", share))) * (4 / math.pi))


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometric:
    """sigma(t) = sigma_min^(1 - t) sigma_max^t: the noise grows by a constant factor.

    m(0) is not 0 but about sigma_min: that share of a token's loss is not in the bound.
    """

    sigma_min: float = 1e-3
    """Total noise at t = 0."""
    sigma_max: float = 20.0
    """Total noise at t = 1."""

    def __post_init__(self) -> None:
        _check("geometric", "sigma_min", self.sigma_min, 1e-9, 1.0)
        _check("geometric", "sigma_max", self.sigma_max, self.sigma_min * 2, 100.0)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def move_chance(self, t: T) -> T:
        return cast("T", -cast("Any", apply("expm1", -cast("Any", self.sigma(t)))))

    def sigma(self, t: T) -> T:
        growth = cast("Any", apply("exp", cast("Any", t) * self._log_ratio))
        return cast("T", self.sigma_min * growth)

    def rate(self, t: T) -> T:
        return cast("T", self._log_ratio * cast("Any", self.sigma(t)))

    def weight(self, t: T) -> T:
        sigma = cast("Any", self.sigma(t))
        return cast("T", self._log_ratio * sigma / apply("expm1", sigma))

    def time(self, move_chance: T) -> T:
        sigma = -cast("Any", apply("log1p", -cast("Any", move_chance)))
        return cast("T", apply("log", sigma / self.sigma_min) / self._log_ratio)


SCHEDULES: Mapping[str, type[Loglinear] | type[Linear] | type[Cosine] | type[Geometric]] = {
    "loglinear": Loglinear,
    "linear": Linear,
    "cosine": Cosine,
    "geometric": Geometric,
}


def _check(schedule: str, field: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(
            f"noise schedule {schedule}: {field} must be a number in [{low:g}, {high:g}], "
            f"not {value!r}"
        )


def make_schedule(name: str, **parameters: float) -> NoiseSchedule:
    """Makes a schedule by name; raises ConfigError for unknown names and parameters."""
    kind = SCHEDULES.get(name)
    if kind is None:
        raise ConfigError(
            f"noise schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}"
        )
    known = set(kind.__dataclass_fields__)
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise ConfigError(
            f"noise schedule {name}: unknown parameter {unknown[0]!r}; it takes {sorted(known)}"
        )
    return kind(**parameters)


def schedule_to_json(schedule: NoiseSchedule) -> dict[str, Any]:
    """Gives the plain mapping that config.json and the manifest hold."""
    for name, kind in SCHEDULES.items():
        if isinstance(schedule, kind):
            return {"name": name, **asdict(schedule)}
    raise ConfigError(f"{type(schedule).__name__} is not a noise schedule of this table")


def schedule_from_json(fields: Mapping[str, Any]) -> NoiseSchedule:
    """Reads what `schedule_to_json` gave; raises ConfigError if it is malformed."""
    name = fields.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"a noise schedule needs a name, found {dict(fields)!r}")
    return make_schedule(name, **{key: value for key, value in fields.items() if key != "name"})
