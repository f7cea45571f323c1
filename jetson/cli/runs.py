"""What `dlm-profile` does with runs on disk: write them, draw them, compare them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ...runtime.cli.common import note, print_json
from ...runtime.errors import ConfigError, DlmError
from ...runtime.files import write_whole, writing
from ..report.compare import compare, read_run
from ..report.table import compare_lines, lines, warnings

NAME = "dlm-profile"
RUN_NAME = "run.json"
PAGE_NAME = "report.html"
COMPARISON_NAME = "compare.html"


def prepare_folder(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Makes the folder of a report, before anything is measured for it.

    Raises:
        ConfigError: A report is there already and may not be replaced, or it is no folder.
    """
    present = [name for name in names if (folder / name).exists()]
    if present and not overwrite:
        raise ConfigError(
            f"{folder} has {present[0]} of an earlier run; name another folder, or replace it with "
            "--overwrite"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write into {folder} ({error.strerror}); name a folder that may be made"
        ) from error


def write_run(record: Mapping[str, Any], folder: Path) -> None:
    """Writes run.json whole or not at all; an earlier run's page goes."""
    path = folder / RUN_NAME
    with writing(path):
        write_whole(path, json.dumps(record, ensure_ascii=False, allow_nan=False))
        (folder / PAGE_NAME).unlink(missing_ok=True)


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """Writes the page, or says on stderr what it lacks."""
    from ..report.report import write_page

    try:
        write_page(record, folder / PAGE_NAME)
    except DlmError as error:
        note(NAME, f"no page: {error}")


def render(run: Path, out: Path | None, *, overwrite: bool, as_json: bool) -> None:
    """Draws the page of a run from disk; raises what reading and drawing raise."""
    from ..report.report import write_page

    record = read_run(run)
    folder = run.parent if out is None else out
    prepare_folder(folder, (PAGE_NAME,), overwrite=overwrite)
    write_page(record, folder / PAGE_NAME)
    if as_json:
        print_json({"page": str(folder / PAGE_NAME)})
    else:
        click.echo(str(folder / PAGE_NAME))


def show_comparison(
    paths: Sequence[Path], out: Path | None, *, overwrite: bool, as_json: bool
) -> None:
    """Prints two runs side by side; with a folder, also writes them as a page."""
    records = [read_run(path) for path in paths]
    names = _names(paths)
    rows = compare(*records)
    if as_json:
        print_json(
            {
                "runs": [str(path) for path in paths],
                "rows": [
                    dict(zip(("quantity", "first", "second", "ratio"), row, strict=True))
                    for row in rows
                ],
                "warnings": [list(warnings(record)) for record in records],
            }
        )
    else:
        for name, record in zip(names, records, strict=True):
            for line in warnings(record):
                click.echo(f"{name}: {line}")
        for line in compare_lines(names, rows):
            click.echo(line)
    if out is not None:
        from ..report.report import write_comparison

        prepare_folder(out, (COMPARISON_NAME,), overwrite=overwrite)
        write_comparison(names, records, out / COMPARISON_NAME)
        note(NAME, f"wrote {out / COMPARISON_NAME}")


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns short names that differ: file names, or the folders around them."""
    names = [path.stem for path in paths]
    if names[0] == names[1]:
        names = [path.resolve().parent.name for path in paths]
    return names if names[0] != names[1] else ["first", "second"]


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def show(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints a run: its table, or its JSON without what only plots need."""
    if as_json:
        plain = {key: value for key, value in record.items() if key != "spans"}
        plain["sensors"] = _without(record.get("sensors", {}), "columns")
        plain["runs"] = [_without(run, "steps") for run in record.get("runs", ())]
        print_json(plain)
        return
    for line in lines(record):
        click.echo(line)
    sys.stdout.flush()
