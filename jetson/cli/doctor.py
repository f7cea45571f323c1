"""What `dlm-profile --doctor` prints: a table, or JSON; exits 1 where something needed lacks."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from ...runtime.cli.common import print_json, styled
from ..doctor.doctor import Diagnosis, diagnose

_MARKS = {"ok": "ok", "info": "-", "warn": "!", "fail": "FAIL"}


def show_doctor(*, as_json: bool) -> None:
    """Prints the diagnosis of this machine."""
    diagnosis = diagnose()
    if as_json:
        print_json(
            {
                "ready": diagnosis.ready,
                "machine": diagnosis.machine.to_json(),
                "checks": [asdict(check) for check in diagnosis.checks],
            }
        )
    else:
        _print(diagnosis)
    if not diagnosis.ready:
        sys.exit(1)


def _print(diagnosis: Diagnosis) -> None:
    for check in diagnosis.checks:
        mark = f"{_MARKS[check.state]:<5}"
        click.echo(
            f"{styled(mark, sys.stdout, bold=check.state == 'fail')}{check.name:<15}{check.found}"
        )
        if check.state in ("warn", "fail") and check.needed:
            click.echo(f"{'':<20}needed: {check.needed}")
        if check.remedy:
            click.echo(f"{'':<20}$ {check.remedy}")
    failed = sum(check.state == "fail" for check in diagnosis.checks)
    warned = sum(check.state == "warn" for check in diagnosis.checks)
    click.echo(
        "ready" + (f", with {warned} things to look at" if warned else "")
        if diagnosis.ready
        else f"not ready: {failed} things lack"
    )
