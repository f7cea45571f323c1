"""Lines of NVIDIA's `tegrastats`: the fallback where sysfs shows no power rail to a plain user.

Both generations are read, as root and not: JetPack 6 has `now/average` per rail and one temperature
per zone, JetPack 7 has `now/average/highest` and `now/highest`; without root there is no EMC_FREQ,
and GR3D_FREQ has no clock. Always the first number, the present one, is taken.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...runtime.errors import DeviceError

COMMAND = "tegrastats"
_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB(?: \(lfb (\d+)x(\d+)([kM])B\))?")
_SWAP = re.compile(r"\bSWAP (\d+)/(\d+)MB")
_CORES = re.compile(r"\bCPU \[([^\]]*)\]")
_MEMORY_CLOCK = re.compile(r"\bEMC_FREQ (\d+)%(?:@\[?(\d+))?")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?(\d+))?")
_TEMPERATURE = re.compile(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b")
_RAIL = re.compile(r"\b([A-Z]\w*) (\d+)mW(?:/\d+mW){0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One figure of a line."""

    kind: str
    """As of `sensors.Sensor`."""
    unit: str
    value: float


def parse_line(line: str) -> dict[str, Reading]:
    """Returns a line's figures by sensor name; empty for a line of something else."""
    ram = _RAM.search(line)
    if ram is None:
        return {}
    found = {
        "system free": Reading(kind="memory", unit="MiB", value=float(ram[2]) - float(ram[1])),
    }
    if ram[3]:
        size = float(ram[4]) / (1024 if ram[5] == "k" else 1)
        found["largest free block"] = Reading(kind="memory", unit="MiB", value=size)
    swap = _SWAP.search(line)
    if swap:
        found["swap used"] = Reading(kind="memory", unit="MiB", value=float(swap[1]))
    cores = _CORES.search(line)
    if cores:
        clocks = [int(core.split("@")[1]) for core in cores[1].split(",") if "@" in core]
        if clocks:
            found["cpu clock"] = Reading(kind="clock", unit="MHz", value=float(max(clocks)))
    memory = _MEMORY_CLOCK.search(line)
    if memory and memory[2]:
        found["emc clock"] = Reading(kind="clock", unit="MHz", value=float(memory[2]))
    gpu = _GPU.search(line)
    if gpu and gpu[1]:
        found["gpu load"] = Reading(kind="load", unit="%", value=float(gpu[1]))
    if gpu and gpu[2]:
        found["gpu clock"] = Reading(kind="clock", unit="MHz", value=float(gpu[2]))
    for name, degrees in _TEMPERATURE.findall(line):
        # Parts that are off say -256.
        if float(degrees) > 0:
            found[name] = Reading(kind="temperature", unit="°C", value=float(degrees))
    for name, milliwatts in _RAIL.findall(line):
        found[name] = Reading(kind="power", unit="W", value=float(milliwatts) / 1000)
    return found


class Tegrastats:
    """The program running beside, its lines handed on as they come."""

    name = COMMAND

    def __init__(self, record: Callable[[float, Mapping[str, Reading]], None], rate: float) -> None:
        """Starts it.

        Args:
            record: gets the time (`time.perf_counter`) and the figures of every line.

        Raises:
            DeviceError: it is not there or does not start.
        """
        if shutil.which(COMMAND) is None:
            raise DeviceError(f"{COMMAND} is not on the path; it comes with JetPack")
        try:
            self._process = subprocess.Popen(
                (COMMAND, "--interval", str(max(1, round(1000 / rate)))),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise DeviceError(f"{COMMAND} does not start: {error.strerror}") from error
        self._record = record
        self._stopping = False
        self.lost: str | None = None
        """Why it ended by itself; None: it did not."""
        self.cpu_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name=COMMAND, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._record(time.perf_counter(), parse_line(line))
            self.cpu_seconds = time.thread_time()
        if not self._stopping:
            self.lost = f"{COMMAND} ended by itself with status {self._process.wait()}"

    def stop(self) -> None:
        """Ends the program."""
        self._stopping = True
        self._process.terminate()
        self._thread.join(timeout=5)
        self._process.wait(timeout=5)
