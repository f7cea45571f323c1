"""The plots of a run: each takes matplotlib's figure class and plain data, and says it in words.

Knows no page and imports no plotting library. Colours are those of Okabe and Ito, which readers of
every colour vision can distinguish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..profile.run_record import STAGES

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
GREY = "#8c959f"
_STAGE_COLOURS = dict(zip(STAGES, (YELLOW, SKY, BLUE, ORANGE, GREY, PURPLE), strict=True))
_PHASE_COLOURS = {"denoise": BLUE, "commit": GREEN, "prefill": SKY, "advance": PURPLE}
_WIDTH = 8.4
_NUM_LAYERS = 12
_NUM_KINDS = 5
"""Kinds of the layers beyond those that are shown one by one."""
_KIND_TITLES = {
    "memory": "memory, MiB",
    "power": "power, W",
    "clock": "clock, MHz",
    "load": "load, %",
    "temperature": "temperature, °C",
}
CROWDED = "Other programs were running, so that these ratios of time mean nothing"
Drawing = tuple[Any, str]


def _axes(make: Any, height: float, *, rows: int = 1) -> tuple[Any, Any]:
    figure = make(figsize=(_WIDTH, height))
    axes = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes if rows > 1 else axes[0]


def stages(make: Any, summary: Mapping[str, Any]) -> Drawing:
    """One bar per stage, with quartiles."""
    figure, axis = _axes(make, 2.6)
    rows = [summary["stages_ms"][name] for name in STAGES]
    medians = [row["median"] for row in rows]
    errors = [
        [row["median"] - row["low"] for row in rows],
        [row["high"] - row["median"] for row in rows],
    ]
    axis.barh(STAGES, medians, xerr=errors, color=[_STAGE_COLOURS[name] for name in STAGES])
    axis.invert_yaxis()
    axis.set_xlabel("ms per text: median, quartiles")
    for place, name in enumerate(STAGES):
        share = summary["stage_share"][name]
        axis.annotate(
            f"{share:.1%}", (rows[place]["high"], place), (6, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    axis.margins(x=0.12)
    largest = max(STAGES, key=lambda name: summary["stage_share"][name])
    return figure, (
        f"{largest.capitalize()} takes {summary['stage_share'][largest]:.0%} of the time. Stages "
        "add up to the whole; the percentages are shares of all texts together."
    )


def stage_pair(make: Any, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Drawing:
    """Two stacked bars."""
    figure, axis = _axes(make, 1.9)
    for place, record in enumerate(records):
        left = 0.0
        for stage in STAGES:
            value = (record.get("summary") or {}).get("stages_ms", {}).get(stage, {})
            width = value.get("median", 0.0)
            label = stage if place == 0 else None
            axis.barh(place, width, left=left, color=_STAGE_COLOURS[stage], label=label)
            left += width
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("ms per text, medians")
    axis.legend(ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure, "Median time of every stage of a text, one run per bar."


def steps(make: Any, runs: Sequence[Mapping[str, Any]]) -> Drawing:
    """Engine time of every graph run, as a distribution per kind."""
    times: dict[str, list[float]] = {}
    for run in runs:
        for phase, _shape, milliseconds in run["steps"]:
            times.setdefault(phase, []).append(milliseconds)
    every = sorted(value for values in times.values() for value in values)
    # A few stalls (another process, first touch) would squeeze everything else into one bar.
    limit = every[min(len(every) - 1, int(0.99 * len(every)))] * 1.1 if every else 1.0
    figure, axis = _axes(make, 2.6)
    edges = [limit * index / 60 for index in range(61)]
    order = sorted(times, key=lambda phase: -len(times[phase]))
    axis.hist(
        [[min(value, limit) for value in times[phase]] for phase in order],
        bins=edges,
        stacked=True,
        label=[f"{phase} ({len(times[phase])})" for phase in order],
        color=[_PHASE_COLOURS.get(phase, GREY) for phase in order],
    )
    axis.set_xlabel("ms in the engine; the last bar holds all beyond")
    axis.set_ylabel("graph runs")
    axis.legend(frameon=False)
    return figure, (
        f"Engine time of all {len(every)} graph runs: prefill puts known text into the cache, "
        "denoise makes text, commit puts a finished block into the cache, advance does both."
    )


def predicted(make: Any, rows: Sequence[Mapping[str, Any]], *, crowded: bool) -> Drawing:
    """Measured over predicted, one bar per quantity, on a logarithmic scale."""
    shown = [row for row in rows if row["ratio"]]
    figure, axis = _axes(make, 0.9 + 0.28 * max(1, len(shown)))
    labels = [row["quantity"] for row in shown]
    ratios = [row["ratio"] for row in shown]
    axis.barh(labels, [ratio - 1 for ratio in ratios], left=1, color=BLUE)
    axis.axvline(1, color="black", linewidth=1)
    axis.axvspan(0.75, 1.25, color=GREEN, alpha=0.12, linewidth=0)
    axis.set_xscale("log")
    low, high = min([*ratios, 0.7]), max([*ratios, 1.4])
    axis.set_xlim(low / 1.2, high * 1.2)
    ticks = [t for t in (0.1, 0.25, 0.5, 0.75, 1, 1.25, 2, 4, 10) if low / 1.2 <= t <= high * 1.2]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.invert_yaxis()
    axis.set_xlabel("measured / predicted")
    if crowded:
        return figure, f"{CROWDED}: they compare the forecast with what other programs left over."
    return figure, "Where measurement and forecast agree, bars are short; the band is ±25 %."


def is_judged(cell: Mapping[str, Any]) -> bool:
    """Whether a judge could read a setting's texts."""
    return (cell.get("quality") or {}).get("bits_per_char") is not None


def frontier(make: Any, sweep: Mapping[str, Any]) -> Drawing:
    """Speed and quality of every judged cell, the frontier joined."""
    figure, axis = _axes(make, 4.0)
    cells = [cell for cell in sweep["cells"] if is_judged(cell)]
    for cell in cells:
        quality, best = cell["quality"], cell["frontier"]
        axis.errorbar(
            cell["tokens_per_s"], quality["bits_per_char"], yerr=quality["half_width"] or 0,
            fmt="o" if best else "x", color=BLUE if best else GREY, capsize=2, linewidth=0.8,
        )  # fmt: skip
    best = sorted((c for c in cells if c["frontier"]), key=lambda c: c["tokens_per_s"])
    axis.plot(
        [c["tokens_per_s"] for c in best], [c["quality"]["bits_per_char"] for c in best],
        color=BLUE, linewidth=1,
    )  # fmt: skip
    for number, cell in enumerate(best):
        axis.annotate(
            short_flags(cell["flags"]),
            (cell["tokens_per_s"], cell["quality"]["bits_per_char"]),
            (7, 7 if number % 2 else -12), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axis.set_xlabel("tokens/s, median")
    axis.set_ylabel("bits per character (lower is better)")
    axis.margins(x=0.18, y=0.12)
    judge = sweep["judge"] or "the bundle's own bound"
    return figure, (
        f"Every setting, judged by {judge}; dots are on the frontier, where nothing else is both "
        "faster and better. Bars: 95 % over texts. A likelihood alone rewards dull text: compare "
        "the entropy in the table."
    )


def short_flags(flags: str) -> str:
    """Returns options without what all settings share: `threshold 0.7, block 32`."""
    words = flags.split()
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    pairs.pop("--threads", None)
    rule = pairs.pop("--rule", "")
    block = pairs.pop("--block", "")
    value = " ".join(pairs.values())
    parts = [f"{rule} {value}".strip() or "default", f"block {block}" if block else ""]
    return ", ".join(part for part in parts if part)


def memory_parts(make: Any, memory: Mapping[str, Any]) -> Drawing:
    """What each part of loading added, on top of each other."""
    parts = memory["parts"]
    figure, axis = _axes(make, 0.8 + 0.34 * len(parts))
    left = 0.0
    for place, part in enumerate(parts):
        axis.barh(place, part["mib"], left=left, color=BLUE if place else GREY)
        left += part["mib"]
        axis.annotate(
            f"{part['mib']:.1f}", (left, place), (5, 0), textcoords="offset points", va="center",
            fontsize=9,
        )  # fmt: skip
    axis.set_yticks(range(len(parts)), [part["name"] for part in parts])
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("resident MiB")
    peak = f" The highest was {memory['peak_mib']:.0f} MiB." if "peak_mib" in memory else ""
    return figure, "Each bar begins where the one above it ends." + peak


def timeline(make: Any, columns: Mapping[str, Any], spans: Sequence[Mapping[str, Any]]) -> Drawing:
    """Every sensor over time, one panel per kind, the run's parts shaded."""
    kinds = [kind for kind in _KIND_TITLES if any(c["kind"] == kind for c in columns.values())]
    figure, axes = _axes(make, 0.6 + 1.7 * len(kinds), rows=len(kinds))
    axes = axes if len(kinds) > 1 else [axes]
    palette = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
    for axis, kind in zip(axes, kinds, strict=True):
        mine = [(name, c) for name, c in columns.items() if c["kind"] == kind]
        # What the machine has free dwarfs what a process takes.
        mine = [(name, c) for name, c in mine if name != "system free"] or mine
        for number, (name, column) in enumerate(mine):
            colour = palette[number % len(palette)]
            axis.plot(column["times"], column["values"], color=colour, label=name, linewidth=1)
        axis.set_ylabel(_KIND_TITLES[kind], fontsize=9)
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for number, span in enumerate(spans):
            shade = "#eaeef2" if number % 2 else "#f6f8fa"
            axis.axvspan(span["begin"], span["end"], color=shade, zorder=0)
    for number, span in enumerate(spans):
        middle = (span["begin"] + span["end"]) / 2
        # In three rows, for names of short parts are wider than these.
        axes[0].annotate(
            span["name"], (middle, 1), (0, 2 + 11 * (number % 3)),
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    axes[-1].set_xlabel("seconds")
    return figure, "What the sensors said; shades are the parts of the run."


def layers(make: Any, times: Mapping[str, Any]) -> Drawing:
    """The layers that take longest, and all others by kind."""
    first = times["layers"][:_NUM_LAYERS]
    rest = times["layers"][_NUM_LAYERS:]
    labels = [f"{layer['name']} ({layer['kind']})" for layer in first]
    shares = [layer["share"] for layer in first]
    groups: dict[str, list[float]] = {}
    for layer in rest:
        groups.setdefault(layer["kind"], []).append(layer["share"])
    order = sorted(groups, key=lambda kind: -sum(groups[kind]))
    for kind in order[:_NUM_KINDS]:
        labels.append(f"{len(groups[kind])} more: {kind}")
        shares.append(sum(groups[kind]))
    if left := [share for kind in order[_NUM_KINDS:] for share in groups[kind]]:
        labels.append(f"{len(left)} more of {len(order) - _NUM_KINDS} kinds")
        shares.append(sum(left))
    figure, axis = _axes(make, 0.8 + 0.26 * len(labels))
    colours = [BLUE if place < len(first) else GREY for place in range(len(labels))]
    # By place: two nodes of one layer may have equal names.
    axis.barh(range(len(labels)), [100 * share for share in shares], color=colours)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("% of the time in layers")
    kinds: dict[str, float] = {}
    for layer in times["layers"]:
        kinds[layer["kind"]] = kinds.get(layer["kind"], 0.0) + layer["share"]
    top = sorted(kinds, key=lambda kind: -kinds[kind])[:3]
    said = ", ".join(f"{kind} {kinds[kind]:.0%}" for kind in top)
    return figure, f"By the engine's own profiler, in a pass of its own. By operator: {said}."
