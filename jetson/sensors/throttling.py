"""Whether a run was slowed down, by heat, power supply or other programs, and how that is known.

Three witnesses of throttling, whichever the machine has: alerts that the kernel raises while it
throttles a part for heat; counters of under-voltage and over-current events; and a GPU that is busy
below the highest clock of its power mode. Figures of a throttled run are those of the enclosure or
the power supply, not of the model; so are those of a run that had to wait for a CPU, which the
scheduler counts.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .kernel import gpu_clock_limit
from .series import Series
from .sysfs import read_text

BUSY_PERCENT = 80.0
LOW_CLOCK = 0.95
"""Share of the highest clock; the governor leaves a busy GPU at the highest."""
CROWDED = 0.05
"""Share of the time spent waiting for a CPU that is worth a warning."""
EVENT_MEANING = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "peak over-current"}


def throttling(series: Series, begin: float, end: float, *, root: Path) -> list[str]:
    """Returns what speaks of throttling in [begin, end], in words; empty: nothing does."""
    found = []
    for name, column in series.of_kind("throttle").items():
        values = column.between(begin, end)
        raised = sum(value > 0 for value in values)
        if raised:
            share = raised / len(values)
            found.append(f"{name} was raised in {share:.0%} of the readings: too hot")
    for name, column in series.of_kind("events").items():
        values = column.between(begin, end)
        if values and max(values) > values[0]:
            what = EVENT_MEANING.get(name.partition("_")[0], "throttling")
            found.append(f"{name} counted {max(values) - values[0]:.0f} {what} events")
    low = _low_clock(series, begin, end, root)
    return found + ([low] if low else [])


def _low_clock(series: Series, begin: float, end: float, root: Path) -> str | None:
    limit = gpu_clock_limit(root)
    loads, clocks = series.columns.get("gpu load"), series.columns.get("gpu clock")
    if not limit or loads is None or clocks is None:
        return None
    # The two may come from different sources, each with readings at times of its own.
    busy = [
        clocks.at(when)
        for when, load in zip(loads.times, loads.values, strict=False)
        if begin <= when <= end and load >= BUSY_PERCENT and clocks.values
    ]
    if busy and median(busy) < LOW_CLOCK * limit:
        return (
            f"the GPU was busy at {median(busy):.0f} MHz, below the {limit:.0f} MHz of its "
            "power mode"
        )
    return None


def foreign(made_for: str, machine: str) -> list[str]:
    """Returns a warning if a bundle was made for a board that this machine is not."""
    if made_for in ("cpu", "host", machine):
        return []
    return [
        f"the bundle was made for {made_for}, this machine is {machine}: its figures are not those "
        "of the target"
    ]


def waited_seconds(root: Path) -> float | None:
    """Returns how long the main thread has waited for a CPU in its life; None: not counted here."""
    words = (read_text(root / "proc/self/schedstat") or "").split()
    # Nanoseconds running, nanoseconds runnable but not running, times it was switched in.
    return int(words[1]) * 1e-9 if len(words) > 1 and words[1].isdecimal() else None


def crowding(waited: float | None, seconds: float) -> list[str]:
    """Returns a warning if other programs took the CPU for long."""
    if waited is None or seconds <= 0 or waited < CROWDED * seconds:
        return []
    return [
        f"other programs were running: {waited / seconds:.0%} of the time went by waiting for a "
        "CPU; measure again on a quiet machine"
    ]
