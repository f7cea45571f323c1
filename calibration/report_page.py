"""The report as one HTML page: tables and drawings of the figures that `quality.py` measured.

The only file here that draws, and so the only one that imports the plotting library, when asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..runtime.errors import ConfigError
from ..runtime.page import Page

_COLORS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#6e7781")
_WIDTH = 8.0
"""Inches."""


def plotting() -> Callable[..., Any]:
    """Returns what makes a drawing; ConfigError if the plotting library is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "the report page needs the package matplotlib: pip install 'dlm-edge[report]'"
        ) from error
    return Figure


def make_page(report: Mapping[str, Any]) -> Page:
    """Lays out a report; ConfigError if the plotting library is not installed."""
    figure = plotting()
    page = Page(f"What {report['precision']} costs: {report['family']} for {report['target']}")
    figures = list(report["variants"].values())
    # Without layers given up, one of the compared is what ships: once is enough.
    figures += [
        item
        for name, item in report["comparison"].items()
        if report["budget"]["num_float"] or name != report["calibrated_on"]
    ]
    _summary(page, report, figures)
    _agreement(page, figures, figure)
    _trajectories(page, figures, figure)
    _sensitivity(page, report, figure)
    _ranges(page, report, figure)
    _canvases(page, report)
    return page


def _summary(page: Page, report: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> None:
    for line in report["findings"]:
        page.paragraph(line)
    for line in report["warnings"]:
        page.paragraph(line, kind="warning")
    page.heading("Size and quality")
    whole = figures[0]["num_bytes"]
    page.table(
        ("variant", "MiB", "of fp32", "perplexity", "95 %", "lost, %", "95 %"),
        [
            (
                item["title"],
                f"{item['num_bytes'] / 2**20:.2f}",
                f"{item['num_bytes'] / whole:.3f}",
                f"{item['perplexity']['perplexity']:.3f}",
                _interval(item["perplexity"], "{:.2f}"),
                _lost(item["ratio"]["value"]),
                f"{_lost(item['ratio']['low'])} to {_lost(item['ratio']['high'])}",
            )
            for item in figures
        ],
    )
    page.table(
        (
            "variant", "top-1 about to be committed, %", "top-1, %", "top-5, %", "same tokens, %",
            "judge", "entropy",
        ),
        [
            (
                item["title"],
                _share(item["agreement"]["about_to_be_committed"], "top1"),
                _share(item["agreement"]["all"], "top1"),
                _share(item["agreement"]["all"], "top5"),
                f"{100 * item['trajectory']['same_tokens']:.1f}",
                _with_interval(item["samples"], "judge_perplexity", "judge_interval"),
                _with_interval(item["samples"], "unigram_entropy", "entropy_interval"),
            )
            for item in figures
        ],
    )  # fmt: skip
    text = report["text"]
    page.paragraph(
        f"Perplexity is the likelihood bound on {text['num_tokens']:,} held-out tokens at blocks "
        f"of {text['block']}, what decoding takes unless asked (the budget holds there; other "
        f"block sizes are not measured), {text['num_samples']} masks per window; what is lost is "
        "measured in pairs under equal masks, which is why its interval is so much narrower. Top-1 "
        "and top-5 compare each model's most likely tokens with fp32's on equal canvases (top-5: "
        "mean share of the five that both have). Same tokens: finished texts of "
        f"{text['num_decodes']} equal prompts, seeds and random numbers, each model following its "
        "own tokens. Judge: perplexity of those texts under an external model, lower is more "
        "predictable; entropy: of a text's words, nats. MiB: graphs and weights.",
        kind="note",
    )


def _interval(values: Mapping[str, float], form: str) -> str:
    return f"{form.format(values['low'])} to {form.format(values['high'])}"


def _share(counts: Mapping[str, Any], name: str) -> str:
    return f"{100 * counts[name]:.2f}" if counts["rows"] else "none"


def _lost(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.3f}"


def _with_interval(values: Mapping[str, Any], name: str, interval: str) -> str:
    if values.get(name) is None:
        return "-"
    low, high = values[interval]
    return f"{values[name]:.3f} ({low:.2f} to {high:.2f})"


def _drawing(figure: Callable[..., Any], title: str, across: str, up: str, height: float = 3.2):
    drawing = figure(figsize=(_WIDTH, height))
    axes = drawing.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
    return drawing, axes


def _agreement(
    page: Page, figures: Sequence[Mapping[str, Any]], figure: Callable[..., Any]
) -> None:
    page.heading("Token agreement by mask ratio")
    if not figures[0]["agreement"]["all"]["rows"]:
        page.paragraph("No held-out canvas has a row to compare.", kind="note")
        return
    for key, words in (("top1", "most likely token"), ("top5", "five most likely tokens")):
        drawing, axes = _drawing(figure, f"Same {words} as fp32", "mask ratio", "%")
        for item, color in zip(figures[1:], _COLORS, strict=False):
            rows = item["agreement"]["by_mask_ratio"]
            axes.plot(
                [float(ratio) for ratio in rows],
                [100 * counts[key] for counts in rows.values()],
                marker="o", markersize=3, color=color, label=item["title"],
            )  # fmt: skip
        axes.legend(fontsize=8, frameon=False)
        worst = min(
            (100 * counts[key], item["title"], ratio)
            for item in figures[1:]
            for ratio, counts in item["agreement"]["by_mask_ratio"].items()
        )
        page.figure(
            drawing,
            f"Rows of held-out canvases. The lowest point is {worst[0]:.1f} %: {worst[1]} at mask "
            f"ratio {worst[2]}.",
        )


def _trajectories(
    page: Page, figures: Sequence[Mapping[str, Any]], figure: Callable[..., Any]
) -> None:
    page.heading("Agreement along a decode")
    drawing, axes = _drawing(
        figure, "Same canvas as fp32's own decode at this step", "step", "% of positions"
    )
    for item, color in zip(figures[1:], _COLORS, strict=False):
        steps = item["trajectory"]["by_step"]
        axes.plot(
            range(1, len(steps) + 1), [100 * share for share in steps],
            color=color, label=item["title"],
        )  # fmt: skip
    axes.legend(fontsize=8, frameon=False)
    page.figure(
        drawing,
        "Equal prompts, seeds and random numbers; nothing is corrected, so that one token that "
        "differs changes what follows.",
    )


def _sensitivity(page: Page, report: Mapping[str, Any], figure: Callable[..., Any]) -> None:
    costs = report["sensitivity"]
    if not costs:
        return
    page.heading("What each layer costs alone")
    drawing, axes = _drawing(figure, "", "% of perplexity lost", "", 0.6 + 0.22 * len(costs))
    places = range(len(costs))
    values = [100 * (cost["ratio"]["value"] - 1) for cost in costs]
    spread = [
        [100 * (cost["ratio"]["value"] - cost["ratio"]["low"]) for cost in costs],
        [100 * (cost["ratio"]["high"] - cost["ratio"]["value"]) for cost in costs],
    ]
    axes.barh(places, values, xerr=spread, color=_COLORS[0], ecolor="#8c959f", height=0.7)
    axes.set_yticks(
        places, [f"{cost['layer']} ({cost['precision']})" for cost in costs], fontsize=8
    )
    axes.invert_yaxis()
    axes.grid(axis="x", color="#d8dee4", linewidth=0.6)
    first = costs[0]
    page.figure(
        drawing,
        f"Each layer quantised while all others are in floating point, with 95 % intervals. The "
        f"most expensive is {first['layer']}: {values[0]:+.3f} %.",
    )
    budget = report["budget"]
    page.table(
        ("layers kept in floating point", "lost, %", "95 %"),
        [
            (
                trial["num_float"],
                _lost(trial["ratio"]["value"]),
                f"{_lost(trial['ratio']['low'])} to {_lost(trial['ratio']['high'])}",
            )
            for trial in budget["trials"]
        ],
    )


def _ranges(page: Page, report: Mapping[str, Any], figure: Callable[..., Any]) -> None:
    if not report["ranges"]:
        return
    page.heading("Ranges by layer and mask ratio")
    for graph, layers in report["ranges"].items():
        ratios = sorted({ratio for item in layers.values() for ratio in item["largest"]}, key=float)
        drawing = figure(figsize=(_WIDTH, 0.9 + 0.24 * len(layers)))
        axes = drawing.add_subplot()
        tops = {name: max(item["largest"].values()) or 1.0 for name, item in layers.items()}
        grid = [
            [item["largest"].get(ratio, float("nan")) / tops[name] for ratio in ratios]
            for name, item in layers.items()
        ]
        image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(len(ratios)), ratios, fontsize=8)
        axes.set_yticks(range(len(layers)), list(layers), fontsize=8)
        axes.set_xlabel("mask ratio")
        drawing.colorbar(image, ax=axes, label="of the layer's largest")
        page.figure(
            drawing,
            f"Largest input of each layer of {graph} while decoding, relative to that layer's "
            "largest: a row that is not even belongs to a layer whose range depends on how much is "
            "masked.",
        )
        page.table(
            ("layer", "precision", "largest", "step x 127", "observer", "alpha", "why not int8"),
            [
                (
                    name,
                    item["precision"],
                    f"{tops[name]:.3g}",
                    "-" if item["scale"] is None else f"{127 * item['scale']:.3g}",
                    item["observer"] or "-",
                    "-" if item["alpha"] is None else f"{item['alpha']:g}",
                    item["reason"] or "-",
                )
                for name, item in layers.items()
            ],
        )


def _canvases(page: Page, report: Mapping[str, Any]) -> None:
    rows = report["canvases"]["coverage"]
    if not rows or not report["calibrated_on"]:
        return
    page.heading("What it was calibrated on")
    page.paragraph(report["canvases"]["words"], kind="note")
    page.table(
        ("graph", "block", "context", "mask ratio up to", "canvases"),
        [
            (r["graph"], r["block"], r["context"], f"{r['decile'] / 10:.1f}", r["count"])
            for r in rows
        ],
    )


__all__: Sequence[str] = ["make_page", "plotting"]
