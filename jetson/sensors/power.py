"""Power rails of a Jetson, straight from its INA3221 monitor; and the power mode.

The monitor gives millivolts and milliamperes per channel and no power. The number of its hwmon
folder changes from boot to boot, so channels are found by label. On Orin Nano and NX, VDD_IN is
what the module draws, VDD_CPU_GPU_CV and VDD_SOC are parts of it; CPU and GPU share a rail. The
driver refreshes about 77 times a second, so faster sampling reads nothing new.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import ConfigError, DeviceError, brief
from .sysfs import Sensor, number_file, read_text

TOTAL_RAIL = "VDD_IN"
"""What the whole module draws, where a board has it."""
_MONITORS = ("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*", "sys/class/hwmon/hwmon*")
_CHANNELS = (1, 2, 3)  # a seventh sums up shunt voltages and is no rail
_MODE_STATUS = "var/lib/nvpmodel/status"
_MODE_NAMES = "etc/nvpmodel.conf"


def find_rails(root: Path) -> list[Sensor]:
    """Returns a sensor in watts for every labelled rail; none where there is no monitor."""
    found: dict[str, Sensor] = {}
    for folder in _monitors(root):
        for channel in _CHANNELS:
            label = read_text(folder / f"in{channel}_label")
            volts = number_file(folder / f"in{channel}_input")
            amperes = number_file(folder / f"curr{channel}_input")
            if not label or label == "NC" or volts is None or amperes is None or label in found:
                continue
            found[label] = Sensor(
                name=label,
                kind="power",
                unit="W",
                read=lambda volts=volts, amperes=amperes: volts.read() * amperes.read() * 1e-6,
            )
    return list(found.values())


def _monitors(root: Path) -> Iterator[Path]:
    for pattern in _MONITORS:
        for folder in sorted(root.glob(pattern)):
            name = read_text(folder / "name")
            if "ina3221" in pattern or (name or "").startswith("ina3221"):
                yield folder


def total_rails(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the rails whose sum is the module's draw: VDD_IN, else all there are."""
    return (TOTAL_RAIL,) if TOTAL_RAIL in names else tuple(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """A mode of nvpmodel."""

    number: int
    name: str
    """As the board's own table has it, such as 25W or MAXN_SUPER."""


def list_modes(root: Path) -> tuple[PowerMode, ...]:
    """Returns the modes that the board's table has; none off a Jetson."""
    text = read_text(root / _MODE_NAMES) or ""
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text)
    return tuple(PowerMode(number=int(number), name=name) for number, name in found)


def current_mode(root: Path) -> PowerMode | None:
    """Returns the mode that nvpmodel last set; None off a Jetson."""
    found = re.search(r"pmode:0*(\d+)", read_text(root / _MODE_STATUS) or "")
    if found is None:
        return None
    number = int(found[1])
    names: Mapping[int, str] = {mode.number: mode.name for mode in list_modes(root)}
    return PowerMode(number=number, name=names.get(number, f"mode {number}"))


def find_mode(root: Path, wanted: str) -> PowerMode:
    """Returns the mode of this name or number; ConfigError listing them if there is none."""
    modes = list_modes(root)
    if not modes:
        raise ConfigError(
            f"--power-mode {wanted}: this machine has no power modes (no /etc/nvpmodel.conf); "
            "leave it out"
        )
    for mode in modes:
        if wanted.lower().replace("-", "_") in (str(mode.number), mode.name.lower()):
            return mode
    names = ", ".join(f"{mode.name} ({mode.number})" for mode in modes)
    raise ConfigError(f"--power-mode {wanted} is not among this board's: {names}")


def mode_command(mode: PowerMode) -> tuple[str, ...]:
    """Returns the command that sets a mode; sudo must not ask for a password."""
    return ("sudo", "-n", "nvpmodel", "-m", str(mode.number))


def set_mode(root: Path, mode: PowerMode) -> None:
    """Sets a power mode.

    A mode that needs a reboot is refused: nvpmodel asks, and is answered no.

    Raises:
        DeviceError: No nvpmodel, no right to use it, or it refuses.
    """
    command = mode_command(mode)
    if shutil.which(command[0]) is None or shutil.which("nvpmodel") is None:
        raise DeviceError(
            f"cannot set power mode {mode.name}: sudo or nvpmodel is not on the path; "
            f"set it yourself with sudo nvpmodel -m {mode.number}"
        )
    result = subprocess.run(
        command, input="NO\n", capture_output=True, timeout=60, check=False,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    now = current_mode(root)
    if result.returncode or now is None or now.number != mode.number:
        said = (result.stderr or result.stdout).strip().splitlines()
        reason = brief(said[-1], 120) if said else "no reason given"
        raise DeviceError(
            f"cannot set power mode {mode.name} ({reason}); "
            f"set it yourself with sudo nvpmodel -m {mode.number}, which may need a reboot"
        )
