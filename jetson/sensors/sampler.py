"""Reads the sensors from a thread while a model runs, and says what that cost.

Files stay open, a reading of one is one system call, and what changes slowly is read less often:
50 readings a second take under 1 % of one core (`benchmarks/sensor_cost.py`), and the thread's own
CPU time is in every report. A sensor that goes away meanwhile is dropped and named; what it
said until then is kept.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.errors import ConfigError, DeviceError
from .jtop_client import Jtop
from .kernel import find_sensors, missing_kinds
from .memory import process_sensors
from .series import Series
from .sysfs import ROOT, Sensor
from .tegrastats import Reading, Tegrastats

MIN_RATE, MAX_RATE, DEFAULT_RATE = 10.0, 50.0, 20.0
SOURCES = ("auto", "sysfs", "tegrastats", "jtop", "none")


class Sampler:
    """The sensors of this machine, recorded from `start` to `stop`."""

    def __init__(
        self, source: str = "auto", rate: float = DEFAULT_RATE, *, root: Path = ROOT
    ) -> None:
        """Finds sensors.

        Args:
            source: `auto` takes sysfs, and tegrastats for power where sysfs shows no rail;
                `none` records this process's memory only.

        Raises:
            ConfigError: an unknown source, or a rate out of range.
            DeviceError: a source that was asked for is not there.
        """
        if source not in SOURCES:
            raise ConfigError(f"sensors must be one of {', '.join(SOURCES)}, found {source!r}")
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ConfigError(f"rate must be from {MIN_RATE:g} to {MAX_RATE:g} per second: {rate}")
        self.series = Series()
        self.lost: dict[str, str] = {}
        """Sensors that went away, with when and why."""
        self._rate = rate
        found = find_sensors(root) if source in ("auto", "sysfs") else []
        self._sensors: list[Sensor] = [*process_sensors(root), *found]
        self.missing = [] if source == "none" else missing_kinds(found)
        self.sources = ["sysfs"] if found else []
        self._besides: list[Tegrastats | Jtop] = []
        self._wanted = source
        self._power_here = any(sensor.kind == "power" for sensor in found)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._begin = self._end = time.perf_counter()
        self._cpu_seconds = 0.0

    @property
    def has_power(self) -> bool:
        """Whether some source gives watts."""
        return self._power_here or bool(self.series.of_kind("power")) or bool(self._besides)

    def start(self) -> None:
        """Begins to record; DeviceError if a source that was asked for does not start."""
        self._begin = time.perf_counter()
        self._start_besides()
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
        self._thread.start()

    def _start_besides(self) -> None:
        wanted = self._wanted
        if wanted == "jtop":
            self._besides.append(Jtop(self._record, self._rate))
        elif wanted == "tegrastats" or (wanted == "auto" and not self._power_here):
            try:
                self._besides.append(Tegrastats(self._record, self._rate))
            except DeviceError as error:
                if wanted == "tegrastats":
                    raise
                self.missing.append(f"tegrastats, the fallback for power: {error}")
        for beside in self._besides:
            self.sources.append(beside.name)

    def _record(self, when: float, values: Mapping[str, Reading]) -> None:
        own = {sensor.name for sensor in self._sensors}
        for name, value in values.items():
            if name not in own:
                self.series.add(name, value.kind, value.unit, when, value.value)

    def _run(self) -> None:
        begin = time.thread_time()
        due = time.perf_counter()
        groups = by_rate(self._sensors, self._rate)
        number = 0
        while not self._stopping:
            now = time.perf_counter()
            for every, sensors in groups.items():
                if number % every == 0:
                    self._read(sensors, now)
            number += 1
            self._cpu_seconds = time.thread_time() - begin
            now = time.perf_counter()
            due = max(due + 1 / self._rate, now)
            # Half the price of waiting for an event, and ending takes one interval at most.
            time.sleep(due - now)

    def _read(self, sensors: list[Sensor], now: float) -> None:
        lost = []
        for sensor in sensors:
            try:
                value = sensor.read()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it no longer gives a number"
                self.lost[sensor.name] = f"gone after {now - self._begin:.1f} s: {reason}"
                lost.append(sensor)
                continue
            self.series.add(sensor.name, sensor.kind, sensor.unit, now, value)
        for sensor in lost:
            sensors.remove(sensor)
            self._sensors.remove(sensor)

    def stop(self) -> None:
        """Ends recording; may be called twice."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None
            self._end = time.perf_counter()
        for beside in self._besides:
            beside.stop()
            if beside.lost:
                self.lost[beside.name] = beside.lost
        if self.series.of_kind("power"):
            self.missing = [line for line in self.missing if not line.startswith("power")]

    def to_json(self, zero: float) -> dict[str, Any]:
        """Returns everything recorded, times in seconds since `zero`."""
        end = self._end if self._thread is None else time.perf_counter()
        seconds = max(end - self._begin, 1e-9)
        cpu = self._cpu_seconds + sum(beside.cpu_seconds for beside in self._besides)
        return {
            "sources": self.sources,
            "rate_hz": self._rate,
            "missing": self.missing,
            "lost": self.lost,
            "cost_percent_of_core": round(100 * cpu / seconds, 3),
            "columns": self.series.to_json(zero),
        }


def by_rate(sensors: Sequence[Sensor], rate: float) -> dict[int, list[Sensor]]:
    """Returns sensors by how many readings of the fastest ones go to one of theirs."""
    groups: dict[int, list[Sensor]] = {}
    for sensor in sensors:
        groups.setdefault(max(1, math.ceil(rate / sensor.max_hz)), []).append(sensor)
    return groups
