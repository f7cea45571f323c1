"""What int8 and fp16 cost a model: the figures of an export's report, kept small, as one table.

    dlm-export checkpoint --precision int8 --calibration-data stories.txt -o model.dlm
    python -m dlm_edge.benchmarks.int8_quality model.report/report.json --made-by "dlm-export …"

The report itself (report.html beside the bundle, and in it) has more: what entered each layer, the
recipe, every canvas counted. Kept here: sizes, perplexities with intervals at every block size,
agreement with float32 by mask ratio and along decodes, samples, each layer's cost, and the same
recipe calibrated otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import DataError
from .report import print_table, record, write_json

DIGITS = 6
"""Significant ones of every figure kept."""
DROPPED = ("recipe", "ranges", "canvases")
COLUMNS = (
    ("variant", "title"),
    ("of fp32's bytes", "size"),
    ("perplexity", "perplexity"),
    ("times fp32", "ratio"),
    ("worst of all blocks, up to", "worst"),
    ("top-1 soon committed", "soon"),
    ("of rows", "rows"),
    ("same tokens", "same"),
    ("judge", "judge"),
    ("entropy", "entropy"),
)


def compact(value: Any) -> Any:
    """Rounds every figure of a report to what it is worth."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: compact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [compact(item) for item in value]
    return value


def kept(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a report that is kept, with how many canvases it came from."""
    small = {key: compact(value) for key, value in report.items() if key not in DROPPED}
    coverage = report["canvases"]["coverage"]
    small["num_canvases"] = sum(row["count"] for row in coverage)
    small["layers"] = {
        graph: {name: layer["precision"] for name, layer in content["layers"].items()}
        for graph, content in report["recipe"]["graphs"].items()
    }
    return small


def rows_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a table's row for every variant that was measured."""
    whole = report["variants"]["fp32"]["num_bytes"]
    return [
        {
            "title": item["title"],
            "size": item["num_bytes"] / whole,
            "perplexity": item["perplexity"]["perplexity"],
            "ratio": item["ratio"]["value"],
            "worst": max(found["ratio"]["high"] for found in item["by_block"].values()),
            "soon": item["agreement"]["about_to_be_committed"]["top1"],
            "rows": item["agreement"]["about_to_be_committed"]["rows"],
            "same": item["trajectory"]["same_tokens"],
            "judge": item["samples"].get("judge_bits_per_char", {}).get("value"),
            "entropy": item["samples"].get("entropy", {}).get("value"),
        }
        for item in (*report["variants"].values(), *report["comparison"].values())
    ]


def read_report(path: Path) -> dict[str, Any]:
    """Reads the report.json that dlm-export wrote beside a bundle; DataError if it is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows_of(report)
        kept(report)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; name a report.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no report of dlm-export --precision int8: name the report.json in the "
            "folder MODEL.report beside a bundle"
        ) from error
    return report


@click.command("int8_quality", cls=DlmCommand)
@click.argument("report", type=click.Path(path_type=Path))
@click.option("--made-by", required=True, help="The command that made the report, for the record.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON to write.")
def main(report: Path, made_by: str, out: Path) -> None:
    """Keeps the figures of an export's REPORT (report.json) and prints them as a table."""
    found = read_report(report)
    print_table(COLUMNS, rows_of(found))
    for line in (*found["findings"], *found["warnings"]):
        click.echo(line)
    write_json(out, {**record(), "made_by": made_by, "report": kept(found)})


if __name__ == "__main__":
    main()
