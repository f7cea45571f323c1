"""Does a head of its own pay on a CPU? One draft-and-verify step, whole against in parts.

    python -m dlm_edge.benchmarks.draft_head

Whole: one run over B (1 + B) rows with logits for all of them. In parts: the same run without the
head, then the head on the B draft rows and on the B rows of one proposal, as the decoding loop does
at beta 1. Random weights: a product takes as long whatever it multiplies. Each round runs both,
once to warm and once to time; ratios are medians of the rounds'. With one thread, time is that
thread's CPU time. Token by token (one row, then a head on it) stands beside, as does what a step
must be worth: the tokens per run from which drafting is faster than token by token on this CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..runtime.cli.common import DlmCommand
from .clocks import clock_for
from .int8_step import interleave, open_session, summarise
from .report import out_option, print_table, record, write_json

SHAPES: Mapping[str, dict[str, Any]] = {
    "stories-4m": {"dim": 256, "num_layers": 4, "num_heads": 4, "vocab_size": 4096},
    "small": {"dim": 384, "num_layers": 6, "num_heads": 6, "vocab_size": 8192},
    # Two of Qwen2.5-0.5B's 24 layers: its head is a fourth of the whole model's products.
    "qwen-0.5b, 2 layers": {
        "dim": 896, "num_layers": 2, "num_heads": 14, "num_kv_heads": 2, "vocab_size": 151936,
        "backbone": "qwen2",
    },
}  # fmt: skip
CONTEXT = 256
COLUMNS = (
    ("model", "model"),
    ("B", "draft"),
    ("rows", "rows"),
    ("form", "form"),
    ("ms", "ms"),
    ("times whole", "ratio"),
    ("min..max", "ratio_range"),
    ("break-even tokens/run", "break_even"),
)


def make_graphs(shape: Mapping[str, Any], blocks: tuple[int, ...]) -> dict[str, Any]:
    """Traces a tied model with random weights: `step`, and `trunk` and `head` as its parts."""
    import torch

    from ..export.onnx_graph.trace import trace
    from ..train.families import FAMILIES

    torch.manual_seed(0)
    family = FAMILIES["tidar"]
    config = family.make_config(
        {
            **shape, "eos_token_id": 0, "mask_token_id": 1, "context": 2 * CONTEXT,
            "block_sizes": ",".join(map(str, blocks)), "tie_embeddings": True,
        }
    )  # fmt: skip
    (graph,) = family.graphs(family.make_model(config["model"]).eval(), config)
    trunk, head = graph.parts
    at = {"batch": 1, "rows": 20, "context": CONTEXT}
    return {
        "step": trace(graph, at),
        "trunk": trace(trunk, at),
        "head": trace(head, {"batch": 1, "rows": 4}),
    }


def steps_of(
    sessions: Mapping[str, Any], shape: Mapping[str, Any], block: int
) -> dict[str, Callable[[], Any]]:
    """The step in both forms, and token by token in both, behind half a context."""
    from ..runtime.families.layout import causal_layout
    from ..runtime.families.tidar.layout import draft_layout, draft_rows

    rng = np.random.default_rng(0)
    caches = next(item for item in sessions["step"].get_inputs() if item.name == "kv")
    kv = rng.standard_normal((CONTEXT, *caches.shape[1:])).astype(np.float32)

    def inputs(rows: int) -> dict[str, np.ndarray]:
        layout = causal_layout(1) if rows == 1 else draft_layout(block)
        return {
            "ids": rng.integers(2, shape["vocab_size"], (1, rows), dtype=np.int32),
            "start": np.array([CONTEXT // 2], np.int32),
            "offsets": layout.offsets[None],
            "visible": layout.visible[None],
            "kv": kv,
        }

    drafting, single = inputs(draft_rows(block)), inputs(1)
    rows = rng.standard_normal((1, block, shape["dim"])).astype(np.float32)

    def in_parts() -> None:
        sessions["trunk"].run(None, drafting)
        for _ in range(2):
            sessions["head"].run(None, {"rows": rows})

    def one_in_parts() -> None:
        sessions["trunk"].run(None, single)
        sessions["head"].run(None, {"rows": rows[:, :1]})

    return {
        "whole": lambda: sessions["step"].run(None, drafting),
        "in parts": in_parts,
        "token by token": one_in_parts,
    }


def measure(model: str, blocks: tuple[int, ...], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Times one model at every draft length."""
    shape = SHAPES[model]
    graphs = make_graphs(shape, blocks)
    sessions = {name: open_session(graph, threads) for name, graph in graphs.items()}
    graphs.clear()
    clock = clock_for(threads)
    rows = []
    for block in blocks:
        seconds = interleave(steps_of(sessions, shape, block), rounds, clock)
        found = summarise(seconds, "whole")
        for form, row in found.items():
            even = row["ms"] / found["token by token"]["ms"] if form != "token by token" else None
            rows.append(
                {"model": model, "draft": block, "rows": block * (1 + block), "form": form}
                | {**row, "break_even": even}
            )
    return rows


@click.command("draft_head", cls=DlmCommand)
@click.option("--rounds", type=click.IntRange(min=1), default=20)
@click.option("--model", "models", multiple=True, type=click.Choice(list(SHAPES)))
@click.option("--block", "blocks", default="4,8,12", help="Draft lengths.")
@click.option("--threads", type=click.IntRange(min=1), default=1)
@out_option("draft_head")
def main(rounds: int, models: tuple[str, ...], blocks: str, threads: int, out: Path) -> None:
    """Times a draft-and-verify step with its head inside and apart."""
    about = record()
    drafts = tuple(map(int, blocks.split(",")))
    rows = []
    for model in models or SHAPES:
        click.echo(f"{model}: tracing and measuring", err=True)
        rows += measure(model, drafts, rounds, threads)
    print_table(COLUMNS, rows)
    write_json(out, {**about, "threads": threads, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
