"""Predicted step times, tokens/s and memory on a board, beside published autoregressive figures.

    python -m dlm_edge.benchmarks.board_table --out benchmarks/results/board.json

Nothing here is measured by this project: the forecast's arithmetic over the graphs' sizes, and
figures that others published. Needs no weights, no torch and no board.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..jetson.forecast.forecast import Forecast, forecast_graphs
from ..jetson.targets import target as find_target
from ..runtime.cli.common import DlmCommand
from .block_graph import FILE, TransformerShape, block_graph, block_manifest
from .report import print_table, record, write_json

QWEN = "Qwen/{} config.json"
SHAPES = tuple(
    TransformerShape(
        name=name,
        dim=dim,
        num_layers=layers,
        num_heads=dim // 64,
        num_kv_heads=dim // 64,
        head_dim=64,
        hidden_dim=dim * 11 // 4,
        vocab_size=8192,
        positions=512,
        source="presets of dlm-train",
    )
    for name, dim, layers in (
        ("tiny", 256, 4),
        ("small", 384, 6),
        ("medium", 512, 8),
        ("large", 640, 10),
    )
) + tuple(
    TransformerShape(
        name=name,
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=2,
        head_dim=dim // heads,
        hidden_dim=hidden,
        vocab_size=151936,
        positions=2048,
        tied=True,
        qkv_bias=True,
        source=QWEN.format(name),
    )
    for name, dim, layers, heads, hidden in (
        ("Qwen2.5-0.5B", 896, 24, 14, 4864),
        ("Qwen2.5-1.5B", 1536, 28, 12, 8960),
    )
)
PUBLISHED: tuple[dict[str, Any], ...] = (
    {
        "system": "llama.cpp",
        "model": "SmolLM2-135M",
        "mode": "25w",
        "tokens_per_s": 165.2,
        "source": "smolhub.com/posts/jetson-nano-super-benchmark-non-reasoning",
    },
    {
        "system": "TensorRT Edge-LLM 0.10",
        "model": "Qwen3-0.6B, INT4 AWQ, 2,048 positions",
        "mode": "not stated",
        "tokens_per_s": 61.0,
        "source": "nvidia.github.io/TensorRT-Edge-LLM/0.10.0, performance benchmarks",
    },
    {
        "system": "TensorRT Edge-LLM 0.10",
        "model": "Qwen3-1.7B, INT4 AWQ, 2,048 positions",
        "mode": "not stated",
        "tokens_per_s": 32.3,
        "source": "nvidia.github.io/TensorRT-Edge-LLM/0.10.0, performance benchmarks",
    },
)
"""Token by token on an Orin Nano 8 GB."""
BLOCK = 32
PRECISIONS = ("fp16", "int8", "int4")
"""Of the linear layers."""
TOKENS_PER_NFE = (1.0, 2.5)
"""What a block model of small size gives (the shipped one: 1.1), and what Fast-dLLM v2 reports for
its Qwen2.5 conversions against token by token (arXiv 2509.26328)."""


def forecast(
    shape: TransformerShape, target: str, mode: str, *, precision: str, tokens_per_nfe: float
) -> Forecast:
    """Plans one shape at a block of 32 over half and all of its positions."""
    sizes = [(BLOCK, shape.positions // 2), (BLOCK, shape.positions)]
    manifest = block_manifest(shape, sizes, precision=precision, target=target)
    graph = block_graph(shape, precision)
    return forecast_graphs(manifest, {FILE: graph}, target, mode, tokens_per_nfe=tokens_per_nfe)


def row(shape: TransformerShape, target: str, mode: str, *, precision: str) -> dict[str, Any]:
    """One line of the table, at half of the model's positions as context."""
    context = shape.positions // 2
    forecasts = [
        forecast(shape, target, mode, precision=precision, tokens_per_nfe=n) for n in TOKENS_PER_NFE
    ]
    parts = [
        next(part for part in item.graphs.values() if part.dims["context"] == context)
        for item in forecasts
    ]
    first, memory = parts[0], forecasts[0].memory
    return {
        "model": shape.name,
        "mode": mode,
        "precision": first.precision,
        "context": context,
        "step_ms": first.step_ms,
        "step_ms_uncaptured": first.step_ms_uncaptured,
        "bound": first.bound,
        "mib": memory.total,
        "memory": memory.to_json(),
        "watts": first.watts,
        **{
            f"tokens_per_s_at_{n:g}": p.tokens_per_s
            for n, p in zip(TOKENS_PER_NFE, parts, strict=True)
        },
        "joules_per_token": first.joules_per_token,
        "bytes": first.bytes,
        "macs": first.macs,
        "warnings": list(forecasts[0].warnings),
    }


COLUMNS = (
    ("model", "model"),
    ("mode", "mode"),
    ("weights", "precision"),
    ("context", "context"),
    ("ms per run", "step_ms"),
    ("not captured", "step_ms_uncaptured"),
    ("most time", "bound"),
    ("tokens/s at 1 per run", "tokens_per_s_at_1"),
    ("at 2.5", "tokens_per_s_at_2.5"),
    ("W", "watts"),
    ("MiB", "mib"),
)


@click.command("board-table", cls=DlmCommand)
@click.option("--target", default="orin-nano")
@click.option("--power-mode", "modes", multiple=True, default=("25w", "maxn-super"))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON of all figures.")
def main(target: str, modes: tuple[str, ...], out: Path | None) -> None:
    """Prints predicted figures of our sizes and of Qwen2.5 shapes, and published ones beside."""
    place = find_target(target)
    rows = []
    for shape in SHAPES:
        # Our own sizes are bound by launches; integers matter for the large ones.
        for precision in PRECISIONS if shape.positions >= 2048 else PRECISIONS[:1]:
            rows += [row(shape, place.name, mode, precision=precision) for mode in modes]
    click.echo(f"predicted, block {BLOCK}, {place.title}")
    print_table(COLUMNS, rows)
    for line in sorted({f"{item['model']}: {w}" for item in rows for w in item["warnings"]}):
        click.echo(line)
    click.echo("\npublished by others, token by token, Orin Nano 8 GB")
    columns = (("system", "system"), ("model", "model"), ("mode", "mode"))
    print_table((*columns, ("tokens/s", "tokens_per_s")), PUBLISHED)
    if out is not None:
        write_json(out, record() | {"predicted": rows, "published": list(PUBLISHED)})


if __name__ == "__main__":
    main()
