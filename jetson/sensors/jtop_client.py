"""Figures from jetson-stats, where its service runs and its package is installed.

It is under the AGPL, so nothing here depends on it: it is imported when `--sensors jtop` asks for
it, and only its own published attributes are read (`power`, `gpu`, `temperature`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...runtime.errors import DeviceError
from .tegrastats import Reading


def read_jtop(board: Any) -> dict[str, Reading]:
    """Returns what an open `jtop.jtop()` says now, by sensor name.

    Powers are in mW, clocks in kHz, loads in %, temperatures in degrees.
    """
    return dict(_values(board))


def _values(board: Any) -> Iterator[tuple[str, Reading]]:
    for name, rail in board.power.get("rail", {}).items():
        if "power" in rail:
            yield name, Reading(kind="power", unit="W", value=rail["power"] / 1000)
    # The rail of the whole module is here instead, with its name; a mere sum has none.
    total = board.power.get("tot", {})
    if "name" in total and "power" in total:
        yield total["name"], Reading(kind="power", unit="W", value=total["power"] / 1000)
    for gpu in board.gpu.values():
        load = gpu.get("status", {}).get("load")
        if load is not None:
            yield "gpu load", Reading(kind="load", unit="%", value=float(load))
        clock = gpu.get("freq", {}).get("cur")
        if clock is not None:
            yield "gpu clock", Reading(kind="clock", unit="MHz", value=clock / 1000)
    for name, zone in board.temperature.items():
        if zone.get("online", True) and zone.get("temp", 0) > 0:
            yield name, Reading(kind="temperature", unit="°C", value=float(zone["temp"]))


class Jtop:
    """A connection to the jtop service, read from a thread."""

    name = "jtop"

    def __init__(self, record: Callable[[float, Mapping[str, Reading]], None], rate: float) -> None:
        """Connects; DeviceError if the package or its service is not there."""
        try:
            from jtop import jtop  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise DeviceError(
                "--sensors jtop needs jetson-stats, which this project does not install: "
                "sudo pip3 install jetson-stats, or use --sensors auto"
            ) from error
        try:
            self._board = jtop(interval=1 / rate)
            self._board.start()
        except Exception as error:  # jtop's own exception is no public name
            raise DeviceError(
                f"the jtop service does not answer ({error}): sudo systemctl start jtop, or use "
                "--sensors auto"
            ) from error
        self._record = record
        self._stopping = threading.Event()
        self.lost: str | None = None
        """Why it ended by itself; None: it did not."""
        self.cpu_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="jtop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() and self._board.ok():
                self._record(time.perf_counter(), read_jtop(self._board))
                self.cpu_seconds = time.thread_time()
        except Exception as error:  # whatever the service's client raises when it goes
            self.lost = f"the jtop service went away: {error}"

    def stop(self) -> None:
        """Disconnects."""
        self._stopping.set()
        self._board.close()
        self._thread.join(timeout=5)
