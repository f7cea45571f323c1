"""What a board would need and do for a model of Qwen2.5's shape that drafts and verifies.

    python -m dlm_edge.benchmarks.qwen_forecast --out benchmarks/results/qwen-forecast-1.5b.json

Predicted, by `jetson/forecast/forecast.py`, from the graphs that `dlm-export` makes: traced in
their full shape, typed and with Q/DQ as for a board, but with weights that have a type and a
shape only, so that no gigabyte of them is made. Nothing is trained, and nothing runs. int8 is
W8A8: embedding and head are stored as int8 and computed in float16, all other products multiply
integers, without outlier channels apart.

Tokens per run are the reader's assumption; TiDAR's paper reports 7.45 on average for 1.5B at a
draft of 16 (arXiv 2511.08923, table 2). Token by token is the same graph at one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from .qwen_scale import COMMON, SHAPES
from .report import print_table, record, write_json

PRECISIONS = ("fp16", "int8")
FILE = "graphs/step.onnx"


def hollow_model(config: dict[str, Any]) -> Any:
    """Builds the model of a config.json; every matrix is one number, seen many times."""
    import torch
    from torch import nn

    from ..train.families import FAMILIES
    from ..train.nn.layers import inverse_frequencies

    with torch.device("meta"):
        model = FAMILIES[config["family"]].make_model(config["model"]).eval()
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in known:
                seen = torch.zeros(1).expand(weight.shape)
                known[id(weight)] = nn.Parameter(seen, requires_grad=False)
            setattr(module, name, known[id(weight)])
    shape = config["model"]
    model.inv_freq = inverse_frequencies(shape["head_dim"], shape["rope_theta"])
    return model


def make_config(size: str, blocks: tuple[int, ...], positions: int) -> dict[str, Any]:
    """The config.json of such a model."""
    from ..train.checkpoints.hugging_face import read_shape

    shape = read_shape({**COMMON, **SHAPES[size]}, "the shape").to_json()
    return {
        "family": "tidar",
        "model": {**shape, "context": positions},
        "vocab_size": COMMON["vocab_size"],
        "block_sizes": list(blocks),
        "mask_token_id": 151665,
        "eos_token_id": 151643,
        "pad_token_id": None,
    }


def forecasts(
    size: str,
    target: str,
    mode: str | None,
    blocks: tuple[int, ...],
    contexts: tuple[int, ...],
) -> Iterator[tuple[str, Any]]:
    """Yields (precision, its forecast)."""
    from ..calibration.forms.board import BoardForm
    from ..calibration.layers import find_layers
    from ..calibration.workbench import describing
    from ..export.onnx_graph.trace import trace
    from ..export.onnx_graph.vocabulary import split_vocabulary
    from ..jetson.forecast.forecast import forecast_graphs
    from ..jetson.graph.onnx_graph import read_graph
    from ..train.families import FAMILIES

    config = make_config(size, blocks, max(contexts))
    model = hollow_model(config)
    (graph,) = FAMILIES["tidar"].graphs(model, config)
    click.echo(f"tracing {size}", err=True)
    at = {"batch": 1, "rows": max(blocks) * (1 + max(blocks)), "context": max(contexts)}
    traced = trace(graph, at)
    split_vocabulary(traced, item_bytes=2)
    form, cache = BoardForm(), (("kv", "kv_new"),)
    for precision in PRECISIONS:
        if precision == "int8":
            layers = find_layers(traced, {tensor.name: tensor.role for tensor in graph.inputs})
            recipe = form.default_recipe(layers, "int8")
            for layer in layers:
                recipe = recipe.with_layer(layer.name, scale=0.03)
            made = form.quantised(traced, layers, recipe, cache)
        else:
            made = form.fp16(traced, (), cache)
        specs = graph.specs(graph.shapes(blocks, contexts), precision=precision)
        manifest = _manifest(config, specs, precision, target)
        manifest = describing(manifest, {graph.name: made}, precision=precision)
        read = read_graph(_without_bytes(made), FILE)
        yield precision, forecast_graphs(manifest, {FILE: read}, target, mode, tokens_per_nfe=1.0)


def _without_bytes(model: Any) -> bytes:
    """Serialises a graph whose large weights are said to be in a file that nothing writes."""
    import onnx_ir as ir

    hollow = model.clone()
    for value in hollow.graph.initializers.values():
        held = value.const_value
        if held.nbytes >= 1 << 20:
            value.const_value = ir.ExternalTensor(
                "none", 0, held.nbytes, held.dtype, shape=held.shape, name=value.name
            )
    return ir.to_proto(hollow).SerializeToString()


def _manifest(config: dict[str, Any], specs: Any, precision: str, target: str) -> Any:
    """Describes the graphs."""
    from ..runtime.bundle.manifest import Manifest

    return Manifest(
        family="tidar",
        model=config["model"],
        vocab_size=config["vocab_size"],
        mask_token_id=config["mask_token_id"],
        eos_token_id=config["eos_token_id"],
        pad_token_id=None,
        logit_shift=1,
        max_position=config["model"]["context"],
        block_sizes=tuple(config["block_sizes"]),
        noise_schedule={},
        precision=precision,
        target=target,
        graphs=specs,
        decoding={},
        provenance={},
    )


def rows_of(precision: str, forecast: Any, tokens: tuple[float, ...]) -> list[dict[str, Any]]:
    """One row per shape: what a step takes, and what it gives at so many tokens per run."""
    rows = []
    for part in forecast.graphs.values():
        took = part.step_ms + part.outside_ms
        row = {
            "precision": precision,
            "draft": part.block or "-",
            "rows": part.dims["rows"],
            "context": part.dims["context"],
            "step_ms": part.step_ms,
            "sampling_ms": part.outside_ms,
            "bound": part.bound,
            "mb_moved": part.bytes / 1e6,
        }
        given = tokens if part.block else (1.0,)
        row |= {
            f"tokens_{count:g}": 1e3 * count / took for count in given if count <= (part.block or 1)
        }
        rows.append(row)
    return rows


@click.command(cls=DlmCommand)
@click.option("--size", type=click.Choice(list(SHAPES)), default="1.5b")
@click.option("--target", default="orin-nano")
@click.option("--power-mode", "mode", help="Default: the one the board boots in.")
@click.option("--block", "blocks", default="4,8,12", help="Draft lengths.")
@click.option("--context", "contexts", default="512,2048")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON of all figures.")
def main(
    size: str, target: str, mode: str | None, blocks: str, contexts: str, out: Path | None
) -> None:
    """Predicts memory, step times and tokens/s on a board."""
    chosen = tuple(map(int, blocks.split(",")))
    buckets = tuple(map(int, contexts.split(",")))
    rows: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    warnings: dict[str, list[str]] = {}
    for precision, forecast in forecasts(size, target, mode, chosen, buckets):
        rows += rows_of(precision, forecast, (3.0, 5.0, 7.0))
        memory.append({"precision": precision, **forecast.memory.to_json(), "mode": forecast.mode})
        warnings[precision] = list(forecast.warnings)
    print_table([(name, name) for name in memory[0]], memory)
    click.echo()
    columns = ("precision", "draft", "rows", "context", "step_ms", "sampling_ms", "bound")
    rates = ("tokens_1", "tokens_3", "tokens_5", "tokens_7")
    print_table([(name, name) for name in (*columns, *rates)], rows)
    for precision, lines in warnings.items():
        for line in lines:
            click.echo(f"{precision}: {line}", err=True)
    if out is not None:
        content = {"size": size, "target": target, "memory_mib": memory, "steps": rows}
        write_json(out, {**record(), **content, "warnings": warnings})


if __name__ == "__main__":
    main()
