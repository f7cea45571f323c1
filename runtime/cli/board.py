"""What `dlm-run --board-report` does: makes the report, writes it, says in short what it holds."""

from __future__ import annotations

import sys

import click

from ..errors import EngineError
from ..measure.board_report import board_report, write_report
from .common import note, print_json
from .options import RunOptions
from .text import load

_NAME = "dlm-run"


def report(options: RunOptions) -> None:
    """Writes the report.

    Raises:
        EngineError: Something of it does not agree or did not run; the report is written then, too.
        DataError: It cannot be written.
    """
    assert options.report_path is not None
    notes: list[str] = []

    def say(part: str) -> None:
        if options.verbose or sys.stderr.isatty():
            note(_NAME, part)

    found = board_report(lambda: load(options, notes.append), notes, say)
    write_report(found, options.report_path)
    if options.as_json:
        print_json(found)
    else:
        _print(found)
        click.echo(f"report written to {options.report_path}", err=True)
    if not found["ok"]:
        raise EngineError(
            f"this machine does not do all that the bundle asks; {options.report_path} has the "
            "details: try --engine onnxruntime, and send the report in"
        )


def _print(found: dict) -> None:
    engine = found["engine"]
    click.echo(f"engine   {engine.get('error') or engine['name'] + ', ' + engine['reason']}")
    if "error" in engine:
        return
    golden, kernels, speed = (found[part] for part in ("golden", "kernels", "speed"))
    click.echo(
        f"golden   {golden.get('error') or _verdict(golden['ok'])}"
        + ("" if "error" in golden else f", {golden['rows']} rows, {golden['tolerance']:.0e}")
    )
    if isinstance(kernels, list):
        wrong = [item["kernel"] for item in kernels if not item["ok"]]
        click.echo(f"kernels  {_verdict(not wrong)}: {', '.join(wrong) or len(kernels)}")
    else:
        click.echo(f"kernels  {kernels if isinstance(kernels, str) else kernels['error']}")
    if "error" in speed:
        click.echo(f"speed    {speed['error']}")
    else:
        click.echo(
            f"speed    {speed['tokens_per_s']} tokens/s, {speed['ms_per_run']} ms per graph run, "
            f"{speed['tokens_per_run']} tokens each"
        )


def _verdict(ok: bool) -> str:
    return "agree" if ok else "DIFFER"
