"""A run as one self-contained HTML page: plots first, the numbers behind them.

Measuring on a board needs no plotting library: a board's JSON is drawn on the desktop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import dims_text
from ...runtime.errors import DlmError
from ...runtime.measure.page import Page
from ..profile.run_record import STAGES
from . import drawings
from .compare import compare
from .table import FIGURES, sweep_notes, warnings


def plotting() -> Any:
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
    make = plotting()
    page = Page(_title(record))
    page.paragraph(_sentence(record))
    for line in _warnings(record):
        page.paragraph(line, kind="warning")
    for heading, figure, caption in _drawings(make, record):
        page.heading(heading)
        page.figure(figure, caption)
    _add_tables(page, record)
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
    yield from warnings(record)
    for name, reason in record.get("sensors", {}).get("lost", {}).items():
        yield f"sensor {name}: {reason}"


def _drawings(make: Any, record: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
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
    make = plotting()
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


_NUM_LAYERS = 40


def _add_tables(page: Page, record: Mapping[str, Any]) -> None:
    """Adds every table that the record has numbers for."""
    if record.get("summary"):
        _figures(page, record)
    if record.get("comparison"):
        _comparison(page, record)
    if record.get("sweep", {}).get("cells"):
        _sweep(page, record["sweep"])
    if record.get("memory"):
        _memory(page, record["memory"])
    _sensors(page, record)
    if record.get("layers", {}).get("layers"):
        _layers(page, record["layers"])
    if record.get("runs"):
        _texts(page, record)
    _conditions(page, record)


def _figures(page: Page, record: Mapping[str, Any]) -> None:
    summary = record["summary"]
    page.heading("Figures")
    columns = ["", "median", "first quartile", "third quartile", "of"]
    rows = []
    for name, label in FIGURES:
        figure = summary["figures"][name]
        if figure["count"]:
            rows.append(
                [label, *(f"{figure[k]:.4g}" for k in ("median", "low", "high")), figure["count"]]
            )
    page.table(columns, rows)
    if record.get("stages_settled"):
        page.paragraph(
            "Stages were timed in a pass of its own that waits for the GPU after each of them; the "
            "other figures are of runs that do not wait.",
            kind="note",
        )
    page.table(
        ["stage", "median ms per text", "first quartile", "third quartile", "share of all texts"],
        [
            [
                name,
                *(f"{summary['stages_ms'][name][k]:.4g}" for k in ("median", "low", "high")),
                f"{summary['stage_share'][name]:.2%}",
            ]
            for name in STAGES
        ],
    )
    page.table(
        ["graph runs for", "graph", "dimensions", "runs", "median engine ms", "quartiles"],
        [
            [p["phase"], p["graph"], dims_text(p["dims"]), p["count"], f"{p['median']:.4g}",
             f"{p['low']:.4g} to {p['high']:.4g}"]
            for p in summary["phases"]
        ],
    )  # fmt: skip


def _comparison(page: Page, record: Mapping[str, Any]) -> None:
    forecast = record["predicted"]
    mode = f", {forecast['mode']}" if forecast["mode"] else ""
    page.heading(f"Predicted for {forecast['target']}{mode}, and measured")
    ratio = "measured / predicted"
    if record.get("crowding"):
        ratio += " (crowded: means nothing)"
    page.table(
        ["", "unit", "predicted", "measured", ratio],
        [
            [row["quantity"], row["unit"]]
            + [_number(row[k]) for k in ("predicted", "measured", "ratio")]
            for row in record["comparison"]
        ],
    )
    for line in forecast.get("warnings", ()):
        page.paragraph(line, kind="warning")


def _sweep(page: Page, sweep: Mapping[str, Any]) -> None:
    page.heading("Settings")
    columns = ["settings", "frontier", "tokens/s", "tokens per graph run", "ms per graph run"]
    columns += ["bits per character", "95 %", "word entropy", "repetition"]
    rows = []
    for cell in sorted(sweep["cells"], key=lambda cell: -cell["tokens_per_s"]):
        quality = cell.get("quality") or {}
        rows.append(
            [
                cell["flags"] + (f" (texts of {cell['same_as']})" if cell.get("same_as") else ""),
                "yes" if cell["frontier"] else "",
                f"{cell['tokens_per_s']:.4g}",
                f"{cell['tokens_per_nfe']:.3g}",
                f"{cell['ms_per_nfe']:.4g}",
                _number(quality.get("bits_per_char")),
                "" if quality.get("half_width") is None else f"±{quality['half_width']:.3f}",
                _number(quality.get("entropy")),
                _number(quality.get("repetition")),
            ]
        )
    page.table(columns, rows)
    for line in sweep_notes(sweep):
        page.paragraph(f"{line[0].upper()}{line[1:]}.")
    missing = sweep["planned"] - len(sweep["cells"])
    if missing:
        page.paragraph(f"{missing} settings were not reached.", kind="warning")


def _memory(page: Page, memory: Mapping[str, Any]) -> None:
    page.heading("Memory")
    if memory.get("parts"):
        page.table(
            ["part", "adds MiB", "resident then", "of it anonymous", "of it files",
             "device in use", "seconds"],
            [
                [p["name"], f"{p['mib']:.1f}", f"{p['resident_mib']:.1f}",
                 f"{p['anonymous_mib']:.1f}", f"{p['file_mib']:.1f}",
                 _number(p["device_used_mib"]), _number(p["seconds"])]
                for p in memory["parts"]
            ],
        )  # fmt: skip
    rows = [
        [what, _number(memory.get(name))]
        for what, name in (
            ("highest resident", "peak_mib"),
            ("highest until loaded", "load_peak_mib"),
            ("resident at the end of the texts", "steady_mib"),
            ("most that malloc had handed out", "malloc_peak_mib"),
            ("most that the engine accounts for", "engine_peak_mib"),
        )
    ]
    if "device_peak_mib" in memory:
        rows.append(["most of the device in use, by all", _number(memory["device_peak_mib"])])
    for name, value in memory.get("engine_account_mib", {}).items():
        rows.append([f"engine's own account: {name}", f"{value:.2f}"])
    page.table(["", "MiB"], rows)


def _sensors(page: Page, record: Mapping[str, Any]) -> None:
    sensors = record.get("sensors", {})
    page.heading("Sensors while texts were generated")
    figures = sensors.get("figures", {})
    if figures:
        page.table(
            ["sensor", "unit", "mean", "lowest", "highest"],
            [
                [n, f["unit"], *(f"{f[k]:.4g}" for k in ("mean", "low", "high"))]
                for n, f in figures.items()
            ],
        )
    energy = record.get("energy")
    if energy:
        page.table(
            ["energy of the texts", ""],
            [[k.replace("_", " "), _plain(v)] for k, v in energy.items()],
        )
    for line in sensors.get("missing", ()):
        page.paragraph(f"Not measured: {line}.", kind="note")
    if sensors:
        page.paragraph(
            f"Read {sensors['rate_hz']:g} times a second by a thread that took "
            f"{sensors['cost_percent_of_core']:.2f} % of one core; sources: "
            f"{', '.join(sensors['sources']) or 'this process only'}.",
            kind="note",
        )


def _layers(page: Page, times: Mapping[str, Any]) -> None:
    page.heading("Layers")
    page.table(
        ["layer", "kind", "calls", "ms per call, median", "share", "KiB in and out per call"],
        [
            [la["name"], la["kind"], la["calls"], f"{la['ms']:.3f}", f"{la['share']:.2%}",
             "" if la["bytes"] is None else f"{la['bytes'] / 1024:.1f}"]
            for la in times["layers"][:_NUM_LAYERS]
        ],
    )  # fmt: skip
    left = len(times["layers"]) - _NUM_LAYERS
    more = f"; {left} more are in run.json" if left > 0 else ""
    held = ", ".join(f"{name} {value:.1f} MiB" for name, value in times["allocator_mib"].items())
    page.paragraph(
        f"{times['nfe']} graph runs with the engine's clocks on: {times['total_ms']:.1f} ms in "
        f"layers of {times['engine_ms']:.1f} ms in the engine, which the clocks slow down{more}."
        + (f" The engine's allocator: {held}." if held else ""),
        kind="note",
    )


def _texts(page: Page, record: Mapping[str, Any]) -> None:
    page.heading("Texts")
    prompts = record["settings"]["prompts"]
    columns = ["prompt", "its tokens", "sample", "new tokens", "graph runs", "blocks"]
    columns += ["ms to first token", "ms", "tokens/s", "ended by"]
    page.table(
        columns,
        [
            [
                prompts[run["prompt"]][:40] or "(none)",
                run["num_prompt_tokens"],
                run["sample_index"],
                run["num_tokens"],
                run["nfe"],
                run["num_blocks"] or "",
                f"{run['first_s'] * 1e3:.1f}",
                f"{run['total_s'] * 1e3:.1f}",
                f"{run['tokens_per_s']:.1f}",
                run["finish_reason"],
            ]
            for run in record["runs"]
        ],
    )


def _conditions(page: Page, record: Mapping[str, Any]) -> None:
    page.heading("Conditions")
    rows = [["measured", record["created"]]]
    for group in ("machine", "bundle", "engine", "settings"):
        for name, value in (record.get(group) or {}).items():
            if value not in (None, "", [], {}) and name != "prompts":
                rows.append([f"{group}: {name.replace('_', ' ')}", _plain(value)])
    page.table(["", ""], rows)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
