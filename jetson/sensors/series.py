"""Figures over time, as sensors gave them: columns of (time, value) by sensor. Knows no sensor."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any


@dataclass(slots=True, kw_only=True)
class Column:
    """What one sensor said."""

    kind: str
    """As of `sysfs.Sensor`."""
    unit: str
    times: list[float] = field(default_factory=list)
    """`time.perf_counter()`, ascending."""
    values: list[float] = field(default_factory=list)

    def between(self, begin: float, end: float) -> list[float]:
        """Returns the values in [begin, end]."""
        return self.values[bisect_left(self.times, begin) : bisect_right(self.times, end)]

    def at(self, when: float) -> float:
        """Returns the reading next to a time; there must be one."""
        after = bisect_left(self.times, when, hi=len(self.values))
        near = range(max(0, after - 1), min(after + 1, len(self.values)))
        return self.values[min(near, key=lambda index: abs(self.times[index] - when))]

    def integral(self, begin: float, end: float) -> float | None:
        """Returns the integral over [begin, end] by trapezoids, held constant beyond the ends.

        None: nothing was recorded in there.
        """
        first, last = bisect_left(self.times, begin), bisect_right(self.times, end)
        if first == last or end <= begin:
            return None
        times = [begin, *self.times[first:last], end]
        values = [self.values[first], *self.values[first:last], self.values[last - 1]]
        return sum(
            (times[i + 1] - times[i]) * (values[i] + values[i + 1]) / 2
            for i in range(len(times) - 1)
        )


class Series:
    """All columns of a run; one thread adds while others read."""

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}

    def add(self, name: str, kind: str, unit: str, when: float, value: float) -> None:
        """Appends a value."""
        column = self.columns.get(name)
        if column is None:
            column = self.columns[name] = Column(kind=kind, unit=unit)
        column.times.append(when)
        # Read last, so that a reader never sees a value without its time.
        column.values.append(value)

    def of_kind(self, kind: str) -> dict[str, Column]:
        """Returns the columns of a kind."""
        return {name: column for name, column in self.columns.items() if column.kind == kind}

    def joules(self, rails: Sequence[str], begin: float, end: float) -> float | None:
        """Returns the energy of these rails in [begin, end]; None: one of them said nothing."""
        total = 0.0
        for rail in rails:
            column = self.columns.get(rail)
            energy = column.integral(begin, end) if column else None
            if energy is None:
                return None
            total += energy
        return total if rails else None

    def figures(self, begin: float, end: float) -> dict[str, dict[str, Any]]:
        """Returns mean, lowest and highest of every column in [begin, end]."""
        found = {}
        for name, column in self.columns.items():
            values = column.between(begin, end)
            if values:
                found[name] = {
                    "kind": column.kind,
                    "unit": column.unit,
                    "mean": fmean(values),
                    "low": min(values),
                    "high": max(values),
                }
        return found

    def to_json(self, zero: float) -> Mapping[str, Any]:
        """Returns plain columns, times in seconds since `zero`."""
        return {
            name: {
                "kind": column.kind,
                "unit": column.unit,
                "times": [round(t - zero, 4) for t in column.times[: len(column.values)]],
                "values": [round(value, 4) for value in column.values],
            }
            for name, column in self.columns.items()
        }
