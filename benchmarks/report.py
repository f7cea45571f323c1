"""What every benchmark says about its circumstances, and how it prints and saves figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..runtime.errors import ConfigError
from ..runtime.files import write_whole
from ..runtime.measure.machine import cpu_name, package_versions
from ..runtime.process import usable_cores

PACKAGES = ("numpy", "onnxruntime", "tokenizers", "torch")


def shortened(argument: str) -> str:
    """Drops the folders of an absolute path: results are published, home folders are not."""
    name, separator, value = argument.rpartition("=")
    path = Path(value)
    return f"{name}{separator}{path.name if path.is_absolute() else value}"


def record() -> dict[str, Any]:
    """Describes machine, versions, date and command line.

    `load_average` is the one of the last minute before the run: figures of a machine that did
    something else at the same time show it there.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).stem, *map(shortened, sys.argv[1:])],
        "machine": {
            "cpu": cpu_name(),
            "num_cores": usable_cores(),
            "platform": platform.platform(terse=True),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "versions": {"python": platform.python_version()} | package_versions(PACKAGES),
    }


def require_names(paths: Sequence[Path]) -> None:
    """Raises ConfigError if two files have one name: results go by name."""
    names = [path.name for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two of the files are named {twice}: give them different names")


def out_option(name: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares the option `--out`, by default a file of the results that are kept."""
    default = Path(f"benchmarks/results/{name}.json")
    return click.option("--out", type=click.Path(path_type=Path), default=default, **settings)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file of results; an interrupted run leaves the older one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    click.echo(f"wrote {path}", err=True)


def _cell(value: Any) -> str:
    """Formats a figure to what it is worth; None as a dash."""
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
        case (low, high):
            return f"{_cell(low)}..{_cell(high)}"
        case _:
            return str(value)


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> str:
    """Lays rows out under (heading, key) columns as a Markdown table; a missing key is a dash."""
    cells = [[heading for heading, _ in columns]]
    cells += [[_cell(row.get(key)) for _, key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def print_table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints `table` to stdout."""
    click.echo(table(columns, rows))
