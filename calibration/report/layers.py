"""The part of the report's page that is about layers: what each costs, its range, what it saw.

Draws with what it is given; `page.py` imports the plotting library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...runtime.bundle.manifest import dims_text
from ...runtime.measure.page import Page

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
        ("layers kept in floating point", "lost, %", "95 %"),
        [
            (
                trial["num_float"],
                lost(trial["ratio"]["value"]),
                lost_between(trial["ratio"]),
            )
            for trial in budget["trials"]
        ],
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
            (
                "layer",
                "precision",
                "largest",
                "step x 127",
                "observer",
                "alpha",
                "outliers",
                "why not int8",
            ),
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
        )


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
