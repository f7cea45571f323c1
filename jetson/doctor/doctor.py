"""Whether a machine is ready to run bundles: what is there, what is needed, what mends it.

Reads files and imports packages in processes of their own, so that one that crashes is a line of
the table. Needs no root and changes nothing: remedies are printed, never run. On a machine that is
no Jetson, only what the CPU needs is asked for.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..sensors.board import MachineFacts, read_machine
from ..sensors.sysfs import ROOT
from .board import board_checks
from .checks import Check, Run, common_checks

_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Every check of a machine."""

    machine: MachineFacts
    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing that is needed lacks."""
        return not any(check.state == "fail" for check in self.checks)


def diagnose(root: Path = ROOT, *, run: Run | None = None) -> Diagnosis:
    """Looks at this machine."""
    machine = read_machine(root)
    return Diagnosis(machine=machine, checks=tuple(_checks(root, machine, run or run_command)))


def _checks(root: Path, machine: MachineFacts, run: Run) -> Iterator[Check]:
    if machine.is_jetson:
        yield from board_checks(root, machine, run)
    else:
        yield Check(
            name="board",
            found=f"{machine.model}, no Jetson",
            needed="nothing: bundles run on the CPU",
            state="info",
        )
    yield from common_checks(root, machine, run)


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """Runs a command without input; one that is missing or cannot be started gives status 127."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{command[0]}: not found"
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {_SECONDS} s"
    return result.returncode, (result.stdout or result.stderr).strip()
