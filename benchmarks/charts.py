"""Draws the pictures of README.md from the figures that are kept.

    python -m dlm_edge.benchmarks.charts

Reads benchmarks/results, writes docs/figures. Wants the plotting library of extra `[report]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError
from ..runtime.files import written_beside
from .decode_report import summarise

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"
PEER, OURS, CAUSAL = "#9aa4ae", "#2f6fb3", "#c9a227"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dlm-edge",  # the same figures give the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
DARK = """
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  path[style*="fill: #ffffff"] { fill: #0d1117 !important }
  path[style*="stroke: #000000"] { stroke: #e6edf3 !important }
}"""
"""What a picture looks like on a dark screen."""
CONTESTANTS = (
    ("eager", "PyTorch eager, whole canvas", PEER),
    ("cached", "PyTorch, KV cache, same rule", PEER),
    ("causal", "causal twin on our engine, float32", CAUSAL),
    ("causal_int8", "causal twin on our engine, int8", CAUSAL),
    ("ours", "dlm-edge, float32", OURS),
    ("int8", "dlm-edge, int8", OURS),
)

DRAFTS = (None, 3, 4, 8)
"""Numbers of drafted tokens that are drawn; None is causal decoding."""


def read(name: str) -> dict[str, Any]:
    """Reads one file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def speed(results: Mapping[str, Any], threads: int = 1) -> list[tuple[str, float, str]]:
    """Gives (contestant, tokens per second, colour) of a run of `decode`."""
    rows = {row["contestant"]: row for row in summarise(results["rounds"], threads)}
    return [(label, rows[key]["tokens_per_s"], colour) for key, label, colour in CONTESTANTS]


def drafts(measured: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float, str]]:
    """Gives (decoding, tokens per second, colour) of runs of `draft_verify` by precision."""
    found = []
    for precision, results in measured.items():
        for row in results["rows"]:
            if row["block"] in DRAFTS:
                pace = f", {row['tokens_per_nfe']:.1f} tokens per run" if row["block"] else ""
                name = f"{precision}: {row['name']}{pace}"
                found.append((name, row["tokens_per_s"], OURS if row["block"] else CAUSAL))
    return found


def read_drafts() -> dict[str, dict[str, Any]]:
    """Reads the runs of `draft_verify` that are kept."""
    return {"float32": read("draft-verify"), "int8": read("draft-verify-int8")}


def board(predicted: Mapping[str, Any], context: int = 512) -> list[tuple[str, float, str]]:
    """Gives (decoding, predicted tokens per second, colour) of `qwen_forecast`'s steps in int8."""
    found = []
    for row in predicted["steps"]:
        if row["precision"] != "int8" or row["context"] != context:
            continue
        if row["draft"] == "-":
            found.append(("token by token", row["tokens_1"], CAUSAL))
        for tokens in (3, 5):
            if f"tokens_{tokens}" in row:
                name = f"drafts of {row['draft']}, {tokens} tokens per run"
                found.append((name, row[f"tokens_{tokens}"], OURS))
    return found


def draw(path: Path, title: str, bars: Sequence[tuple[str, float, str]]) -> None:
    """Writes horizontal bars, their figures at the ends, as SVG.

    Raises:
        ConfigError: The plotting library is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "pictures want matplotlib: pip install 'dlm-edge[report]', or '.[report]' here"
        ) from error
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.42 * len(bars) + 0.7))
        axes = figure.add_subplot()
        names, values, colours = zip(*reversed(bars), strict=True)
        axes.barh(range(len(bars)), values, color=colours, height=0.68)
        axes.set_yticks(range(len(bars)), names)
        for i, value in enumerate(values):
            axes.text(value, i, f"  {value:,.0f}", va="center")
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks([])
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as beside:
            figure.savefig(
                beside,
                format="svg",
                bbox_inches="tight",
                facecolor="white",
                metadata={"Date": None},
            )
            drawn = beside.read_text(encoding="utf-8")
            beside.write_text(drawn.replace("</style>", f"{DARK}</style>", 1), encoding="utf-8")
    click.echo(f"wrote {path.name}", err=True)


@click.command("charts", cls=DlmCommand)
@click.option("--out", type=click.Path(path_type=Path), default=FIGURES, help="Folder to write to.")
def main(out: Path) -> None:
    """Draws the pictures of README.md."""
    draw(
        out / "decode.svg",
        "tokens per second, 17 M parameters, one thread of a CPU, batch 1",
        speed(read("decode-small-int8")),
    )
    draw(
        out / "drafts.svg",
        "tokens per second, a Qwen2 shape of 3.2 M parameters, one thread of a CPU",
        drafts(read_drafts()),
    )
    draw(
        out / "board.svg",
        "predicted, not measured: tokens per second on an Orin Nano 8 GB, 25 W, "
        "Qwen2.5-1.5B shape, int8",
        board(read("qwen-forecast-1.5b")),
    )


if __name__ == "__main__":
    main()
