"""The report as one HTML page: tables and drawings of the figures that `quality.py` measured.

The only file here that draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...runtime.bundle.manifest import dims_text
from ...runtime.errors import ConfigError
from ...runtime.measure.page import Page


def plotting() -> Callable[..., Any]:
    """Returns what makes a drawing; ConfigError if the plotting library is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "the report page needs matplotlib: pip install 'dlm-edge[report]'"
        ) from error
    return Figure


def make_page(report: Mapping[str, Any]) -> Page:
    """Lays out a report; ConfigError if the plotting library is not installed."""
    figure = plotting()
    page = Page(f"What {report['precision']} costs: {report['family']} for {report['target']}")
    figures = list(report["variants"].values())
    # Where no layer is given up, one of those compared ships: it is shown once.
    figures += [
        item
        for name, item in report["comparison"].items()
        if report["budget"]["given_up"] or name != report["calibrated_on"]
    ]
    _summary(page, report, figures)
    _agreement(page, report, figures, figure)
    _trajectories(page, figures, figure)
    show_sensitivity(page, report, figure)
    show_ranges(page, report, figure)
    show_canvases(page, report)
    return page


def _summary(page: Page, report: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> None:
    page.paragraph(report["verdict"], kind="verdict")
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
                *_lost(item["ratio"]),
            )
            for item in figures
        ],
    )
    page.table(
        (
            "variant", "top-1 about to be committed, %", "top-1, %", "top-5, %", "same tokens, %",
            "tokens per run", "judge, bits/char", "entropy",
        ),
        [
            (
                item["title"],
                _share_of(item["agreement"]["about_to_be_committed"], "top1"),
                _share(item["agreement"]["all"], "top1"),
                _share(item["agreement"]["all"], "top5"),
                f"{100 * item['trajectory']['same_tokens']:.1f}",
                f"{item['trajectory']['tokens_per_nfe']:.2f}",
                _with_interval(item["samples"].get("judge_bits_per_char")),
                _with_interval(item["samples"].get("entropy")),
            )
            for item in figures
        ],
    )  # fmt: skip
    text = report["text"]
    page.paragraph(
        f"{_about_perplexity(text)} Top-1 and top-5 compare each model's most likely tokens with "
        "fp32's on equal canvases (top-5: mean share of the five that both have). Same tokens: "
        f"finished texts of {text['num_decodes']} equal prompts, seeds and random numbers, each "
        "model following its own tokens; tokens per run: of those texts, by graph runs. Judge: "
        "what those texts cost another bundle, lower is more predictable; entropy: of a text's "
        "words, nats. MiB: graphs and weights.",
        kind="note",
    )
    _blocks(page, report)
    _tables(page, report)


def _about_perplexity(text: Mapping[str, Any]) -> str:
    if text["num_samples"] == 1:
        return (
            f"Perplexity is the exact likelihood of {text['num_tokens']:,} held-out tokens, for "
            "which nothing is drawn: it says how good the text is, and nothing of drafts."
        )
    at_block = (
        ""
        if text["block"] is None
        else (f" at blocks of {text['block']}, what decoding takes unless asked")
    )
    return (
        f"Perplexity is the likelihood bound on {text['num_tokens']:,} held-out tokens"
        f"{at_block}, {text['num_samples']} draws of noise per window; what is "
        "lost is measured in pairs under equal noise, which is why its interval is so much "
        "narrower."
    )


def _blocks(page: Page, report: Mapping[str, Any]) -> None:
    if len(report["text"]["blocks"]) < 2:
        return
    page.table(
        ("at blocks of", "variant", "perplexity", "95 %", "lost, %", "95 %"),
        [
            (
                block,
                item["title"],
                f"{found['perplexity']['perplexity']:.3f}",
                _interval(found["perplexity"], "{:.2f}"),
                *_lost(found["ratio"]),
            )
            for block in map(str, report["text"]["blocks"])
            for item in report["variants"].values()
            for found in (item["by_block"][block],)
        ],
    )
    page.paragraph(
        f"The budget of {100 * report['budget']['max_loss']:g} % is for the block size that loses "
        "most. Layers alone and sets of canvases are compared at the one that decoding takes.",
        kind="note",
    )


def _tables(page: Page, report: Mapping[str, Any]) -> None:
    """What storing embeddings and heads as int8 costs."""
    if not report["tables"]:
        return
    page.table(
        ("embedding or head, alone", "stored as", "lost, %", "95 %", "verdict"),
        [
            (
                item["layer"],
                item["precision"],
                *_lost(item["ratio"]),
                "harmless" if item["harmless"] else "not harmless",
            )
            for item in report["tables"]
        ],
    )
    page.paragraph(
        "Harmless: the upper end of its interval takes no more than half of the budget. What is "
        "not is stored in the next precision that is, or in floating point.",
        kind="note",
    )


def _interval(values: Mapping[str, float], form: str) -> str:
    if values["low"] == values["high"]:
        return "exact"
    return f"{form.format(values['low'])} to {form.format(values['high'])}"


def _share(counts: Mapping[str, Any], name: str) -> str:
    return f"{100 * counts[name]:.2f}" if counts["rows"] else "none"


def _share_of(counts: Mapping[str, Any], name: str) -> str:
    """The share with the number of rows it is of, which may be small."""
    rows = counts["rows"]
    return f"{_share(counts, name)} of {rows:,}" if rows else "none"


def _with_interval(found: Mapping[str, float | None] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    return f"{found['value']:.3f} ({found['low']:.2f} to {found['high']:.2f})"


def _agreement(
    page: Page,
    report: Mapping[str, Any],
    figures: Sequence[Mapping[str, Any]],
    figure: Callable[..., Any],
) -> None:
    noise = report["text"]["noise"]
    page.heading(f"Token agreement by {noise}")
    if not figures[0]["agreement"]["all"]["rows"]:
        page.paragraph("No held-out canvas has a row to compare.", kind="note")
        return
    for key, words in (("top1", "most likely token"), ("top5", "five most likely tokens")):
        drawing, axes = drawing_of(figure, f"Same {words} as fp32", noise, "%")
        for item, color in zip(figures[1:], COLORS, strict=False):
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
            f"Rows of held-out canvases. The lowest point is {worst[0]:.1f} %: {worst[1]} at a "
            f"{noise} of {worst[2]}.",
        )


def _trajectories(
    page: Page, figures: Sequence[Mapping[str, Any]], figure: Callable[..., Any]
) -> None:
    page.heading("Agreement along a decode")
    drawing, axes = drawing_of(
        figure, "Same canvas as fp32's own decode at this step", "step", "% of positions"
    )
    for item, color in zip(figures[1:], COLORS, strict=False):
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


COLORS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#6e7781")
WIDTH = 8.0
"""Inches."""


def lost(ratio: float) -> str:
    """Writes a perplexity ratio as per cent lost; what rounds to nothing has no sign."""
    text = f"{100 * (ratio - 1):+.3f}"
    return text if float(text) else "0.000"


def lost_between(ratio: Mapping[str, float]) -> str:
    """Writes the interval of a ratio; an exact likelihood, of which nothing is drawn, has none."""
    if ratio["low"] == ratio["high"]:
        return "exact"
    return f"{lost(ratio['low'])} to {lost(ratio['high'])}"


def _lost(ratio: Mapping[str, float]) -> tuple[str, str]:
    return lost(ratio["value"]), lost_between(ratio)


def drawing_of(figure: Callable[..., Any], title: str, across: str, up: str, height: float = 3.2):
    """Starts a drawing of the page's looks; gives it and its axes."""
    drawing = figure(figsize=(WIDTH, height))
    axes = drawing.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
    return drawing, axes


def show_sensitivity(page: Page, report: Mapping[str, Any], figure: Callable[..., Any]) -> None:
    """What each layer costs alone, and the recipes that the budget was searched among."""
    costs = report["sensitivity"]
    if not costs:
        return
    page.heading("What each layer costs alone")
    drawing, axes = drawing_of(figure, "", "% of perplexity lost", "", 0.6 + 0.22 * len(costs))
    places = range(len(costs))
    values = [100 * (cost["ratio"]["value"] - 1) for cost in costs]
    spread = [
        [100 * (cost["ratio"]["value"] - cost["ratio"]["low"]) for cost in costs],
        [100 * (cost["ratio"]["high"] - cost["ratio"]["value"]) for cost in costs],
    ]
    axes.barh(places, values, xerr=spread, color=COLORS[0], ecolor="#8c959f", height=0.7)
    axes.set_yticks(
        places, [f"{cost['layer']} ({cost['precision']})" for cost in costs], fontsize=8
    )
    axes.invert_yaxis()
    axes.grid(axis="x", color="#d8dee4", linewidth=0.6)
    first = costs[0]
    page.figure(
        drawing,
        "Each layer quantised while all others are in floating point"
        f"{', with 95 % intervals' if any(map(any, spread)) else ''}. The most expensive is "
        f"{first['layer']}: {values[0]:+.3f} %.",
    )
    budget = report["budget"]
    page.table(
        ("layers given up", "lost, %", "95 %"),
        [(trial["given_up"], *_lost(trial["ratio"])) for trial in budget["trials"]],
    )


def show_ranges(page: Page, report: Mapping[str, Any], figure: Callable[..., Any]) -> None:
    """What enters each layer, by how noisy the canvas is; and what became of the layer."""
    if not report["ranges"]:
        return
    noise = report["text"]["noise"]
    page.heading(f"Ranges by layer and {noise}")
    for graph, layers in report["ranges"].items():
        ratios = sorted({ratio for item in layers.values() for ratio in item["largest"]}, key=float)
        drawing = figure(figsize=(WIDTH, 0.9 + 0.24 * len(layers)))
        axes = drawing.add_subplot()
        tops = {name: max(item["largest"].values()) or 1.0 for name, item in layers.items()}
        grid = [
            [item["largest"].get(ratio, float("nan")) / tops[name] for ratio in ratios]
            for name, item in layers.items()
        ]
        image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(len(ratios)), ratios, fontsize=8)
        axes.set_yticks(range(len(layers)), list(layers), fontsize=8)
        axes.set_xlabel(noise)
        drawing.colorbar(image, ax=axes, label="of the layer's largest")
        page.figure(
            drawing,
            f"Largest input of each layer of {graph} while decoding, relative to that layer's "
            "largest: a row that is not even belongs to a layer whose range depends on how much is "
            "noise.",
        )
        page.table(
            ("layer", "precision", "largest", "step x 127", "observer", "alpha",
             "outliers", f"why not {report['precision']}"),
            [
                (
                    name,
                    item["precision"],
                    f"{tops[name]:.3g}",
                    "-" if item["scale"] is None else f"{127 * item['scale']:.3g}",
                    item["observer"] or "-",
                    "-" if item["alpha"] is None else f"{item['alpha']:g}",
                    len(item["outliers"]) or "-",
                    item["reason"] or "-",
                )
                for name, item in layers.items()
            ],
        )  # fmt: skip


def show_canvases(page: Page, report: Mapping[str, Any]) -> None:
    """How many canvases of each kind the scales come from."""
    rows = report["canvases"]["coverage"]
    if not rows or not report["calibrated_on"]:
        return
    page.heading("What it was calibrated on")
    page.paragraph(report["canvases"]["words"], kind="note")
    page.table(
        ("graph", "dimensions", f"{report['text']['noise']} up to", "canvases"),
        [(r["graph"], dims_text(r["dims"]), f"{r['decile'] / 10:.1f}", r["count"]) for r in rows],
    )
