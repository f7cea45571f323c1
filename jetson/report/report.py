"""A run as one self-contained HTML page: plots first, the numbers behind them.

The only file that knows the plotting library (matplotlib, extra `[report]`), and only inside
functions: measuring on a board needs none, and a board's JSON is drawn on the desktop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.errors import DlmError
from ...runtime.measure.page import Page
from . import drawings
from .compare import compare
from .tables import add_tables

NAME = "report.html"


def import_pyplot() -> Any:
    """Returns matplotlib's figure class; DlmError naming the extra if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DlmError(
            f"the page needs matplotlib ({error}): pip install 'dlm-edge[report]' here, or copy "
            "run.json to a machine that has it and run dlm-profile --render run.json"
        ) from error
    return Figure


def write_page(record: Mapping[str, Any], path: Path) -> None:
    """Writes a run's page; DlmError if there is no plotting library or no place."""
    make = import_pyplot()
    page = Page(_title(record))
    page.paragraph(_sentence(record))
    for line in _warnings(record):
        page.paragraph(line, kind="warning")
    for heading, figure, caption in _figures(make, record):
        page.heading(heading)
        page.figure(figure, caption)
    add_tables(page, record)
    page.write(path)


def _title(record: Mapping[str, Any]) -> str:
    bundle = record.get("bundle")
    name = bundle["name"] if bundle else "a run that loaded nothing"
    return f"{name} on {record['machine']['model']}"


def _sentence(record: Mapping[str, Any]) -> str:
    """Says the outcome in words, so that a reader in a hurry may stop here."""
    summary, energy = record.get("summary"), record.get("energy")
    if not summary:
        return "No text was generated before the run ended."
    figures = summary["figures"]
    words = [
        f"{figures['tokens_per_s']['median']:.4g} tokens/s (quartiles "
        f"{figures['tokens_per_s']['low']:.4g} to {figures['tokens_per_s']['high']:.4g}, "
        f"{figures['tokens_per_s']['count']} texts), "
        f"{figures['ms_per_nfe']['median']:.3g} ms per graph run at "
        f"{figures['tokens_per_nfe']['median']:.3g} tokens each"
    ]
    if "peak_mib" in record.get("memory", {}):
        words.append(f"at most {record['memory']['peak_mib']:.0f} MiB resident")
    if energy:
        words.append(f"{energy['watts']:.3g} W, {energy['tokens_per_joule']:.3g} tokens per joule")
    mode = record["machine"]["power_mode"]
    where = f"{record['engine']['name']}, {record['engine']['threads']} threads"
    return "; ".join(words) + f". {where}{f', power mode {mode}' if mode else ''}."


def _warnings(record: Mapping[str, Any]) -> Iterator[str]:
    if not record["complete"]:
        yield "The run was interrupted: what had been measured until then is shown."
    for line in record.get("throttling", ()):
        yield f"Throttled: {line}. Its figures are those of cooling or supply, not of the model."
    for line in record.get("foreign", ()):
        yield f"Another target: {line}."
    for line in record.get("crowding", ()):
        yield f"Crowded: {line}."
    sensors = record.get("sensors", {})
    for name, reason in sensors.get("lost", {}).items():
        yield f"Sensor {name}: {reason}."


def _figures(make: Any, record: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    summary = record.get("summary")
    if summary:
        yield "Where a text's time goes", *drawings.stages(make, summary)
        yield "How long a graph run takes", *drawings.steps(make, record["runs"])
    if record.get("comparison"):
        yield (
            "Predicted and measured",
            *drawings.predicted(make, record["comparison"], crowded=bool(record.get("crowding"))),
        )
    if any(drawings.is_judged(cell) for cell in record.get("sweep", {}).get("cells", ())):
        yield "Speed against quality", *drawings.frontier(make, record["sweep"])
    if record.get("memory", {}).get("parts"):
        yield "What memory is for", *drawings.memory_parts(make, record["memory"])
    columns = record.get("sensors", {}).get("columns")
    if columns:
        yield "Over time", *drawings.timeline(make, columns, record["spans"])
    if record.get("layers", {}).get("layers"):
        yield "Which layers", *drawings.layers(make, record["layers"])


def write_comparison(
    names: Sequence[str], records: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Writes the page of two runs side by side; raises as `write_page`."""
    make = import_pyplot()
    page = Page(f"{names[0]} and {names[1]}")
    for name, record in zip(names, records, strict=True):
        page.paragraph(f"{name}: {_title(record)}. {_sentence(record)}")
        for line in _warnings(record):
            page.paragraph(f"{name}: {line}", kind="warning")
    page.heading("Where a text's time goes")
    page.figure(*drawings.stage_pair(make, names, records))
    page.heading("Figures")
    rows = [
        [quantity, a, b, "" if ratio is None else f"{ratio:.3f}"]
        for quantity, a, b, ratio in compare(*records)
    ]
    page.table(["", *names, "ratio"], rows)
    page.paragraph("Medians with quartiles; the ratio is the second to the first.", kind="note")
    page.write(path)
