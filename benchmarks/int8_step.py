"""One graph run in int8 against the same in float32, on this CPU, in one interleaved run.

    python -m dlm_edge.benchmarks.int8_step

Models have the shapes of the model that ships and of a `small` one, with random weights: a product
takes as long whatever it multiplies. The int8 graph is what `dlm-export --target cpu` writes. Each
round runs every graph once to warm it and once to time it; figures are medians of rounds, and
ratios medians of the rounds' ratios. With one thread, time is that thread's CPU time, so that other
work on the machine hardly shows; else wall time. The relative error is that of logits with random
weights, worse than that of trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from ..runtime.cli.common import DlmCommand
from .clocks import Clock, clock_for, timed
from .report import out_option, print_table, record, write_json

SHAPES: Mapping[str, dict[str, int]] = {
    "stories-4m": {"dim": 256, "num_layers": 4, "num_heads": 4, "vocab_size": 4096},
    "small": {"dim": 384, "num_layers": 6, "num_heads": 6, "vocab_size": 8192},
}
CONTEXT = 256
COLUMNS = (
    ("model", "model"),
    ("block", "block"),
    ("graph", "graph"),
    ("ms", "ms"),
    ("times fp32", "ratio"),
    ("min..max", "ratio_range"),
    ("MiB / fp32's", "size_ratio"),
    ("logit error", "relative_error"),
)


def make_graphs(shape: Mapping[str, int]) -> tuple[dict[str, Any], list[Any]]:
    """Traces a masked model with random weights; gives graphs by precision, and inputs' specs."""
    import torch

    from ..calibration.forms.cpu import CpuForm
    from ..calibration.layers import find_layers
    from ..export.onnx_graph.trace import trace
    from ..train.families import FAMILIES

    torch.manual_seed(0)
    family = FAMILIES["mdlm"]
    special = {"eos_token_id": 0, "mask_token_id": 1, "pad_token_id": None}
    config = family.make_config(
        {**shape, **special, "context": 2 * CONTEXT, "block_sizes": "32", "tie_embeddings": True}
    )
    (graph,) = family.graphs(family.make_model(config["model"]).eval(), config)
    exact = trace(graph, {"batch": 1, "rows": 32, "context": CONTEXT})
    layers = find_layers(exact, {tensor.name: tensor.role for tensor in graph.inputs})
    form = CpuForm()
    quantised = form.quantised(exact, layers, form.default_recipe(layers, "int8"), ())
    return {"fp32": exact, "int8": quantised}, list(graph.inputs)


def example(specs: list[Any], block: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Random inputs of one run: a block behind half a context."""
    rng = np.random.default_rng(block)
    sizes = {"batch": 1, "rows": block, "context": CONTEXT}
    inputs = {}
    for tensor in specs:
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        match tensor.role:
            case "canvas":
                values = rng.integers(2, vocab_size, shape)
            case "start":
                values = np.full(shape, CONTEXT // 2)
            case "kv":
                values = rng.standard_normal(shape)
            case _:
                values = np.zeros(shape)
        inputs[tensor.name] = values.astype(tensor.dtype)
    return inputs


def open_session(model: Any, threads: int) -> Any:
    """Opens a graph as the runtime does."""
    import onnx_ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def interleave(
    runs: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Times each call once per round, after a call that is not timed; seconds by name."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            seconds[name].append(timed(run, clock)[1])
    return seconds


def summarise(seconds: Mapping[str, list[float]], baseline: str) -> dict[str, dict[str, Any]]:
    """Medians in ms, and how many times as fast as the baseline within rounds."""
    rows = {}
    for name, values in seconds.items():
        ratios = [base / own for base, own in zip(seconds[baseline], values, strict=True)]
        rows[name] = {
            "ms": 1e3 * median(values),
            "ratio": median(ratios),
            "ratio_range": (min(ratios), max(ratios)),
        }
    return rows


def measure(model: str, blocks: tuple[int, ...], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Times every graph of one model at every block size."""
    from ..calibration.graphs import num_bytes

    shape = SHAPES[model]
    graphs, specs = make_graphs(shape)
    size = {name: num_bytes(graph) for name, graph in graphs.items()}
    sessions = {name: open_session(graph, threads) for name, graph in graphs.items()}
    clock = clock_for(threads)
    rows = []
    for block in blocks:
        inputs = example(specs, block, shape["vocab_size"])
        exact = sessions["fp32"].run(["logits"], inputs)[0]
        runs = {name: partial(item.run, None, inputs) for name, item in sessions.items()}
        seconds = interleave(runs, rounds, clock)
        for name, row in summarise(seconds, "fp32").items():
            found = sessions[name].run(["logits"], inputs)[0]
            error = float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))
            rows.append(
                {"model": model, "block": block, "graph": name, **row}
                | {"size_ratio": size[name] / size["fp32"], "relative_error": error}
            )
    return rows


@click.command("int8_step", cls=DlmCommand)
@click.option("--rounds", type=click.IntRange(min=1), default=40)
@click.option("--quick", is_flag=True, help="Five rounds.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="CPU threads.")
@out_option("int8_step")
def main(rounds: int, quick: bool, threads: int, out: Path) -> None:
    """Times a run of the graph in int8 and in float32, at blocks of 8, 16 and 32.

    Goal: 1.5 times as fast with VNNI and 1.2 without, at 384 wide and blocks of 32.
    """
    circumstances = record()
    rows = [
        row
        for model in SHAPES
        for row in measure(model, (8, 16, 32), 5 if quick else rounds, threads)
    ]
    print_table(COLUMNS, rows)
    write_json(out, {**circumstances, "threads": threads, "rows": rows})


if __name__ == "__main__":
    main()
