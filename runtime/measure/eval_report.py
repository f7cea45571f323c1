"""The report of `dlm-eval`: lines, a file that others are compared with, a page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, brief
from ..files import parse_json, write_whole, writing
from .evaluate import eval_line
from .figures import Measured, difference
from .page import Page

FORMAT = "dlm-eval 1"
_FILE, _PAGE = "report.json", "report.html"
BETTER: Mapping[str, int] = {
    "perplexity": -1, "bits_per_char": -1, "bits_per_byte": -1,
    "judge_perplexity": -1, "judge_bits_per_char": -1, "known_words": 1,
    "entropy": 1, "distinct_4": 1, "repetition": -1, "longest_repeat": -1, "self_bleu": -1,
    "exact_match": 1, "bleu": 1, "rouge_1": 1, "rouge_2": 1, "rouge_l": 1, "meteor": 1, "chrf": 1,
    "tokens_per_s": 1, "nfe": -1, "tokens_per_nfe": 1, "ms_per_nfe": -1,
}  # fmt: skip
"""Figures in the order they are shown; 1: more is better, -1: less."""


_QUALITIES = ("judge_bits_per_char", "entropy")
"""Of a curve of speed: the first that was measured."""


def without_rows(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report without rows and texts: figures and where they come from."""

    def small(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: small(item)
            for name, item in value.items()
            if name not in ("rows", "form", "jackknife", "texts", "windows")
        }

    return small(report)


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.json and the page, each whole or not at all; DataError if it cannot."""
    with writing(f"the report in {folder}", "choose another DIR", DataError):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _FILE, json.dumps({"format": FORMAT, **report}) + "\n")
    _page_of(report).write(folder / _PAGE)


def read_report(folder: Path) -> dict[str, Any]:
    """Reads what `write_report` wrote; DataError if it did not."""
    path = folder / _FILE
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; name a folder that dlm-eval --out wrote"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({brief(error, 100)}); measure again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path} is no report of this version of dlm-eval: measure again")
    return found


def _groups(report: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Measured]]]:
    """Yields the figures of a report by task; `speed` has one task per number of steps."""
    if "windows" in report and "perplexity" in report:
        windows = report["windows"]
        nats = sum(one for one, _ in windows)
        found = {
            "perplexity": Measured.of_json({"rows": windows, "form": "perplexity", "value": 0})
        }
        for unit in ("char", "byte"):
            scale = nats / math.log(2) / report[f"bits_per_{unit}"]
            share = scale / sum(number for _, number in windows)
            rows = [(one / math.log(2), number * share) for one, number in windows]
            found[f"bits_per_{unit}"] = Measured.of_json(
                {"rows": rows, "form": "ratio", "value": 0}
            )
        yield "likelihood", found
    for task, content in report.get("tasks", {}).items():
        curve = {f"{task}, {steps} steps": one for steps, one in content.items()}
        for name, one in curve.items() if task == "speed" else [(task, content)]:
            yield name, {key: Measured.of_json(item) for key, item in one["figures"].items()}


def compare_reports(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compares reports with the first of them.

    Returns:
        `models`, and of every task and figure that all have a row: `values` per model, and of each
        but the first `difference` (value, low, high) and `verdict`: better, worse or "no
        difference shown" at 95 %, in pairs where both have the same texts.

    Raises:
        ConfigError: Reports on other data, with other seeds or lengths, or without a common task.
    """
    names = list(reports)
    first = reports[names[0]]
    for key, what in (("data_sha256", "data"), ("seed", "seeds"), ("num_words", "--words")):
        for name in names[1:]:
            if reports[name][key] != first[key]:
                raise ConfigError(f"{name} was measured with other {what} than {names[0]}")
    groups = {name: dict(_groups(report)) for name, report in reports.items()}
    rows = []
    for task, figures in groups[names[0]].items():
        if not all(task in groups[name] for name in names):
            continue
        for figure in BETTER:
            found = [groups[name][task].get(figure) for name in names]
            if figure == "perplexity" and len({reports[n]["num_tokens"] for n in names}) > 1:
                continue  # another tokenizer: bits per character compare
            if figure.startswith("judge") and len({reports[n]["judge"] for n in names}) > 1:
                continue
            if figure in figures and all(one is not None for one in found):
                rows.append(_row(task, figure, [one for one in found if one is not None]))
    if not rows:
        raise ConfigError(f"{' and '.join(names)} have no task in common; measure the same ones")
    return {
        "models": [_title(reports[name], name) for name in names],
        "rows": rows,
        "curves": [_curve(report) for report in reports.values()],
    }


def _curve(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lists the points of a report's texts from nothing: tokens/s, quality and number of steps."""
    points = []
    for title, content in _tables(report):
        if title == "generate" or title.startswith("speed"):
            figures = content["figures"]
            name = next(key for key in _QUALITIES if key in figures)
            words = title.split()
            points.append(
                {
                    "steps": words[1] if len(words) > 1 else "",
                    "tokens_per_s": figures["tokens_per_s"]["value"],
                    "figure": name,
                    **{key: figures[name][key] for key in ("value", "low", "high")},
                }
            )
    return points


def _title(report: Mapping[str, Any], folder: str) -> str:
    return f"{folder} ({report['model']}, {report['precision']})"


def _row(task: str, figure: str, found: Sequence[Measured]) -> dict[str, Any]:
    others = [difference(found[0], one) for one in found[1:]]
    verdicts = []
    for one in others:
        sign = BETTER[figure] * ((one.low > 0) - (one.high < 0))
        verdicts.append({1: "better", -1: "worse", 0: "no difference shown"}[sign])
    return {
        "task": task,
        "figure": figure,
        "values": [one.interval().to_json() for one in found],
        "differences": [one.to_json() for one in others],
        "verdicts": verdicts,
    }


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _interval(found: Mapping[str, float | None]) -> str:
    low, high = _number(found["low"]), _number(found["high"])
    return f"{_number(found['value'])} ({low} to {high})"


def _tables(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for task, content in report.get("tasks", {}).items():
        if task == "speed":
            yield from ((f"{task}, {steps} steps", one) for steps, one in content.items())
        else:
            yield task, content


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the report as text: a line of likelihood, a table per task."""
    if "nats_per_token" in report:
        yield eval_line(report)
    for title, content in _tables(report):
        yield f"{title}: {len(content['texts'])} texts{_notes(content)}"
        rows = [
            ("figure", "model (95 %)", "people (95 %)" if content["human"] else ""),
            *_rows(content),
        ]
        widths = [max(len(row[place]) for row in rows) for place in range(3)]
        for row in rows:
            yield "  " + "  ".join(map(str.ljust, row, widths)).rstrip()


def _notes(content: Mapping[str, Any]) -> str:
    return "".join(f"; {one}" for one in content["notes"])


def _rows(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    human = content["human"]
    names = [*BETTER, *(name for name in content["figures"] if name not in BETTER)]
    return [
        (name, _interval(content["figures"][name]), _interval(human[name]) if name in human else "")
        for name in names
        if name in content["figures"]
    ]


def comparison_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields a comparison as text."""
    for number, model in enumerate(found["models"]):
        yield f"{number}: {model}"
    lines = [_comparison_head(found), *_comparison_rows(found)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(map(str.ljust, line, widths)).rstrip()


def _comparison_head(found: Mapping[str, Any]) -> list[str]:
    numbers = range(1, len(found["models"]))
    return ["task", "figure", "0", *(w for n in numbers for w in (str(n), f"{n} against 0"))]


def _comparison_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in found["rows"]:
        cells = [row["task"], row["figure"], _interval(row["values"][0])]
        for value, verdict in zip(row["values"][1:], row["verdicts"], strict=True):
            cells += [_interval(value), verdict]
        yield cells


def write_page(found: Mapping[str, Any], folder: Path) -> None:
    """Writes a comparison as a page and as JSON."""
    page = Page("What the models' texts are worth, in pairs")
    for number, model in enumerate(found["models"]):
        page.paragraph(f"{number}: {model}")
    page.table(_comparison_head(found), list(_comparison_rows(found)))
    if any(len(curve) > 1 for curve in found["curves"]):
        _draw_curves(page, dict(zip(found["models"], found["curves"], strict=True)))
    page.paragraph(_ABOUT, kind="note")
    with writing(f"the comparison in {folder}", "choose another DIR", DataError):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "comparison.json", json.dumps(found, indent=1) + "\n")
    page.write(folder / "comparison.html")


_ABOUT = (
    "In brackets: 95 % intervals over texts (likelihood: over windows of the text). Better and "
    "worse: the interval of the difference, in pairs where both models read the same texts, does "
    "not hold 0."
)


def plotting() -> Callable[..., Any]:
    """Returns what makes a drawing; ModuleNotFoundError if the plotting library lacks."""
    from matplotlib.figure import Figure

    return Figure


def _draw_curves(page: Page, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draws quality against speed: a line per model, a point per number of steps."""
    figure = plotting()(figsize=(8.4, 4.2))
    axis = figure.subplots()
    names = {point["figure"] for points in curves.values() for point in points}
    for model, points in curves.items():
        ordered = sorted(points, key=lambda point: point["tokens_per_s"])
        speeds = [point["tokens_per_s"] for point in ordered]
        values = [point["value"] for point in ordered]
        errors = [
            [point["value"] - point["low"] for point in ordered],
            [point["high"] - point["value"] for point in ordered],
        ]
        axis.errorbar(speeds, values, yerr=errors, marker="o", capsize=3, label=model)
        for point in ordered:
            axis.annotate(point["steps"], (point["tokens_per_s"], point["value"]), (4, 4),
                          textcoords="offset points", fontsize=9)  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel("tokens/s")
    axis.set_ylabel(" or ".join(sorted(names)).replace("_", " "))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    page.heading("Quality against speed")
    page.figure(figure, "Texts from nothing; numbers are steps, bars 95 % intervals over texts.")


def _page_of(report: Mapping[str, Any]) -> Page:
    page = Page(f"What the text of {report['model']} is worth")
    if "nats_per_token" in report:
        page.heading("Likelihood")
        page.paragraph(eval_line(report))
    for title, content in _tables(report):
        page.heading(title.capitalize())
        page.table(("figure", "model", "people"), _rows(content))
        if content["notes"]:
            page.paragraph("; ".join(content["notes"]).capitalize() + ".", kind="note")
        for one in content["texts"][:3]:
            before, behind = one.get("left", one.get("prompt", "")), one.get("right", "")
            page.paragraph(" ".join(part for part in (before, f"[{one['text']}]", behind) if part))
    curve = _curve(report)
    if len(curve) > 1:
        _draw_curves(page, {report["model"]: curve})
    page.paragraph(_ABOUT, kind="note")
    return page
