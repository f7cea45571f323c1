"""What `dlm-profile --serve` does: measures, prints a table, and writes `serve.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from ...runtime.bundle.bundle import bundle_facts, default_bundle_path, open_bundle
from ...runtime.cli.common import print_json
from ...runtime.cli.options import read_prompts
from ...runtime.cli.progress import ProgressLine
from ...runtime.errors import EngineError
from ...runtime.files import write_whole, writing
from ...runtime.measure.machine import cpu_name
from ..profile.profile import DEFAULT_PROMPTS
from ..profile.serving import measure_serving
from .runs import prepare_folder

SERVE_NAME = "serve.json"
_COLUMNS = (
    ("clients", "clients"),
    ("texts", "texts"),
    ("tokens_per_s", "tokens/s"),
    ("first_ms_p50", "first text, ms p50"),
    ("first_ms_p99", "p99"),
    ("token_ms_p50", "per token, ms p50"),
    ("token_ms_p99", "p99"),
    ("http_share", "HTTP's share"),
)


def measure(
    path: Path | None, settings: Mapping[str, Any], given: Mapping[str, Any], *, as_json: bool
) -> None:
    """Measures a bundle under `dlm-serve`.

    Raises:
        EngineError: It does not start, or a text was lost or differs from that of one client.
    """
    bundle = open_bundle(path or default_bundle_path(), expect_sha256=given["expect_sha256"])
    out: Path | None = given["out"]
    if out is not None:
        prepare_folder(out, (SERVE_NAME,), overwrite=given["overwrite"])
    prompts = tuple(read_prompts(given["prompt_file"])) if given["prompt_file"] else ()
    bar = ProgressLine()
    try:
        found = measure_serving(
            bundle.path,
            prompts or DEFAULT_PROMPTS[:1],
            runs=given["runs"],
            seed=given["seed"],
            max_tokens=given["max_tokens"],
            settings=settings,
            engine=given["engine"],
            threads=given["threads"],
            progress=partial(_draw, bar),
        )
    finally:
        bar.wipe()
    record = {"bundle": bundle_facts(bundle), "cpu": cpu_name(), **found}
    if out is not None:
        with writing(out / SERVE_NAME):
            write_whole(out / SERVE_NAME, json.dumps(record, ensure_ascii=False))
    if as_json:
        print_json(record)
    else:
        _print(record)
    lost = sum(level["differ"] for level in record["levels"])
    if lost or record["exit_status"]:
        raise EngineError(
            f"{lost} texts differ from those of one client, and the server ended with status "
            f"{record['exit_status']}; send the report in"
        )


def _draw(bar: ProgressLine, what: str, done: int, planned: int) -> None:
    bar.show(done, planned, what)


def _print(record: Mapping[str, Any]) -> None:
    rows = [[heading for _, heading in _COLUMNS]]
    rows += [[f"{level[name]:g}" for name, _ in _COLUMNS] for level in record["levels"]]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    idle, after = record["idle"], record["after"]
    click.echo(
        f"ready after {record['start_seconds']:.2f} s; {idle['rss_mib']:.0f} MiB before the first "
        f"text, at most {after['peak_rss_mib']:.0f} MiB; every text as that of one client"
    )
