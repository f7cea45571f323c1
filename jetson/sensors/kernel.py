"""What can be read while a model runs: power, clocks, load, temperature, throttling, memory.

Every sensor is a number by name; which ones a machine has is found once. What is missing is said in
words, and nothing here fails because of it. Power rails are in `power.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from .power import find_rails
from .sysfs import NumberFile, OpenFile, Sensor, first_existing, number_file, read_text

_GPU_LOADS = (
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/17000000.ga10b/load",
    "sys/class/devfreq/17000000.gpu/device/load",
    "sys/class/devfreq/17000000.ga10b/device/load",
)
"""In thousandths. The platform path moved between JetPack 5, 6 and 7."""
_GPU_CLOCKS = ("sys/class/devfreq/17000000.gpu", "sys/class/devfreq/17000000.ga10b")
_MEMORY_CLOCK = "sys/kernel/debug/bpmp/debug/clk/emc/rate"  # readable by root only
_ALERT = "-throttle-alert"
"""Type of the cooling devices that the kernel raises while it throttles a part for heat."""
_EVENTS = "sys/devices/platform/soctherm-oc-event/hwmon/hwmon*/oc*_event_cnt"
"""Undervoltage (1) and overcurrent (2: average, 3: instantaneous) throttling, since boot."""
_X86_EVENTS = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
CLOCK_HZ = 20.0
"""Governors look at load and set clocks at most this often."""
_SLOW_HZ = 4.0
"""Heat, counters and the system's memory change slowly, and the last costs most to read."""
_MEM_AVAILABLE = re.compile(rb"MemAvailable:\s+(\d+)")


def find_sensors(root: Path) -> list[Sensor]:
    """Returns every sensor of this machine that can be read without root."""
    return [
        *find_rails(root),
        *_gpu(root),
        *_cpu_clocks(root),
        *_temperatures(root),
        *_throttling(root),
        *_system_memory(root),
    ]


def missing_kinds(sensors: list[Sensor]) -> list[str]:
    """Says in words what a report will lack."""
    kinds = {sensor.kind for sensor in sensors}
    names = {sensor.name for sensor in sensors}
    lines = []
    if "power" not in kinds:
        lines.append("power: no INA3221 rail can be read, so no watts and no tokens per joule")
    if "gpu load" not in names:
        lines.append("GPU load and clock: no Tegra GPU in sysfs")
    if "temperature" not in kinds:
        lines.append("temperature: no thermal zone can be read")
    if not kinds & {"throttle", "events"}:
        lines.append("throttling: no alert and no counter in sysfs; only clocks show it")
    return lines


def _scaled(
    name: str, kind: str, unit: str, file: NumberFile, factor: float, max_hz: float
) -> Sensor:
    return Sensor(name=name, kind=kind, unit=unit, read=lambda: file.read() * factor, max_hz=max_hz)


def _gpu(root: Path) -> Iterator[Sensor]:
    load = first_existing(root, _GPU_LOADS)
    file = number_file(load) if load else None
    if file:
        yield _scaled("gpu load", "load", "%", file, 0.1, CLOCK_HZ)
    folder = first_existing(root, _GPU_CLOCKS)
    clock = number_file(folder / "cur_freq") if folder else None
    if clock:
        yield _scaled("gpu clock", "clock", "MHz", clock, 1e-6, CLOCK_HZ)
    memory = number_file(root / _MEMORY_CLOCK)
    if memory:
        yield _scaled("emc clock", "clock", "MHz", memory, 1e-6, CLOCK_HZ)


def gpu_clock_limit(root: Path) -> float | None:
    """Returns the highest GPU clock of the power mode in MHz; None off a Jetson."""
    folder = first_existing(root, _GPU_CLOCKS)
    file = number_file(folder / "max_freq") if folder else None
    return file.read() * 1e-6 if file else None


def _cpu_clocks(root: Path) -> Iterator[Sensor]:
    folders = sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"))
    files = [number_file(folder / "scaling_cur_freq") for folder in folders]
    found = [file for file in files if file]
    if found:
        # Cores of one kind: the highest is the one that works.
        yield Sensor(
            name="cpu clock",
            kind="clock",
            unit="MHz",
            read=lambda: max(file.read() for file in found) * 1e-3,
            max_hz=CLOCK_HZ,
        )


def _temperatures(root: Path) -> Iterator[Sensor]:
    seen: set[str] = set()
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name = (read_text(folder / "type") or "").removesuffix("-thermal")
        file = number_file(folder / "temp")
        # Zones of parts that are off (cv0 to cv2 on Orin) fail to read, or say 0.
        if not name or name in seen or file is None or file.read() <= 0:
            continue
        seen.add(name)
        yield _scaled(name, "temperature", "°C", file, 1e-3, _SLOW_HZ)


def _throttling(root: Path) -> Iterator[Sensor]:
    for folder in sorted(root.glob("sys/class/thermal/cooling_device*")):
        name = read_text(folder / "type") or ""
        file = number_file(folder / "cur_state")
        if name.endswith(_ALERT) and file:
            yield _scaled(name, "throttle", "", file, 1.0, _SLOW_HZ)
    for path in (*sorted(root.glob(_EVENTS)), root / _X86_EVENTS):
        file = number_file(path)
        if file:
            yield _scaled(path.name, "events", "", file, 1.0, _SLOW_HZ)


def _system_memory(root: Path) -> Iterator[Sensor]:
    with contextlib.suppress(OSError):
        file = OpenFile(root / "proc/meminfo")

        def available() -> float:
            found = _MEM_AVAILABLE.search(file.start(256))
            if found is None:
                raise ValueError("no MemAvailable")
            return int(found[1]) / 1024

        yield Sensor(name="system free", kind="memory", unit="MiB", read=available, max_hz=_SLOW_HZ)
