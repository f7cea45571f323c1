"""What recipes cost a real causal model, in perplexity of real text.

    python -m dlm_edge.benchmarks.recipes SmolLM2-135M-Instruct.Q4_1.gguf --data text.txt

Every linear layer takes the same recipe, and no budget gives any of them up; on boards head and
embedding are stored as int8. Text is read in windows of 128 tokens without context: the first ones
are what channels and scales are chosen on, the others are measured. Ratios are over float32 on the
same windows, with a 95 % interval over windows. Graphs for boards run on ONNX Runtime's CPU
provider, which computes in floating point on the rounded values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..runtime.cli.common import DlmCommand
from .int8_step import open_session
from .report import out_option, print_table, record, write_json

WINDOW = 128
COUNTS = (8, 16, 32)
Makes = Callable[[], tuple[Any, Any]]
"""Fits a recipe; returns it and its graph."""
COLUMNS = (
    ("recipe", "recipe"),
    ("MiB", "mib"),
    ("perplexity / fp32's", "ratio"),
    ("95 %", "interval"),
    ("same top token", "same_top"),
    ("outliers", "outliers"),
)


def read_windows(path: Path, encode: Callable[[str], list[int]], count: int) -> list[np.ndarray]:
    """Returns (WINDOW,) int32 windows of a text, as many as it has and at most so many."""
    text = path.read_text("utf-8")[: 16 * WINDOW * count].replace("<|endoftext|>", "\n")
    ids = np.array(encode(text), np.int32)
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)][
        :count
    ]


def inputs_of(spec: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the inputs of one run over a window without context."""
    return {
        tensor.name: ids[None].astype(tensor.dtype)
        if tensor.role == "canvas"
        else np.zeros(tensor.shape, tensor.dtype)
        for tensor in spec.inputs
    }


def read_text(session: Any, spec: Any, windows: Iterable[np.ndarray]) -> tuple[Any, Any]:
    """Returns the mean negative log-likelihood of each window in nats, and the top tokens."""
    losses, top = [], []
    for ids in windows:
        logits = session.run(["logits"], inputs_of(spec, ids))[0][0, :-1].astype(np.float32)
        most = logits.max(axis=1)
        total = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
        losses.append(float((total - logits[np.arange(len(logits)), ids[1:]]).mean()))
        top.append(logits.argmax(axis=1))
    return np.array(losses), np.concatenate(top)


def paired(losses: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Returns the ratio of perplexities and its interval over windows."""
    change = losses - exact
    error = 1.96 * float(change.std(ddof=1)) / np.sqrt(len(change))
    mean = float(change.mean())
    return {
        "ratio": float(np.exp(mean)),
        "interval": (float(np.exp(mean - error)), float(np.exp(mean + error))),
    }


def recipes_of(model: Any, spec: Any, windows: Sequence[np.ndarray]) -> dict[str, Makes]:
    """Returns functions that fit each recipe and make its graph, by the recipe's name.

    Args:
        windows: That channels and scales are chosen on.
    """
    from ..calibration.canvases.canvases import CanvasSet, Inputs, RecordedRun
    from ..calibration.forms.board import BoardForm
    from ..calibration.forms.cpu import CpuForm
    from ..calibration.scales.activations import collect, layer_inputs
    from ..calibration.scales.calibrate import Calibrator, Fitted
    from ..calibration.scales.outliers import SLACKS

    runs = tuple(
        RecordedRun(
            spec=spec,
            inputs=Inputs(inputs_of(spec, ids)),
            mask_ratio=0.0,
            progress=1.0,
            committing=np.zeros(WINDOW, bool),
            weight=1.0,
            source="clean",
        )
        for ids in windows
    )
    canvases = CanvasSet(items=runs, model_sha256="", recipe={})
    graph = spec.name
    work = Calibrator({graph: model}, [spec], CpuForm(), "cpu", "int8")
    small = Calibrator({graph: model}, [spec], CpuForm(), "cpu", "int4")
    board = Calibrator({graph: model}, [spec], BoardForm(), "orin-nano", "int8")
    board4 = Calibrator({graph: model}, [spec], BoardForm(), "orin-nano", "int4")
    layers, plain = work.layers[graph], work.default_recipe({})

    @cache
    def largest() -> dict[str, np.ndarray]:
        seen = collect(model, runs, layer_inputs(layers), graph=graph)
        return {name: item.channel_max for name, item in seen.items()}

    def fixed(count: int) -> Any:
        recipe = plain
        for layer in layers:
            if layer.inputs and count:
                order = np.argsort(-largest()[layer.inputs[0]])[:count]
                recipe = recipe.with_layer(graph, layer.name, outliers=tuple(sorted(order)))
        return recipe

    def stored() -> Any:
        recipe = plain
        for layer in layers:
            recipe = recipe.with_layer(graph, layer.name, precision="int8-weight")
        return recipe

    def made(given: Callable[[], Any]) -> Makes:
        def make() -> tuple[Any, Any]:
            recipe = given()
            fitted = Fitted(recipe=recipe, models={graph: model}, grids={graph: {}})
            return recipe, work.quantised(fitted, recipe)[graph]

        return make

    def fitted(calibrator: Calibrator, outliers: float | None = SLACKS[0]) -> Makes:
        def make() -> tuple[Any, Any]:
            found = calibrator.fit(calibrator.default_recipe({}), canvases, outliers=outliers)
            return found.recipe, calibrator.quantised(found, found.recipe)[graph]

        return make

    return {
        "int8 weights, float activations": made(stored),
        "int8": made(partial(fixed, 0)),
        **{f"int8, {count} outliers": made(partial(fixed, count)) for count in COUNTS},
        "int8, chosen outliers": fitted(work),
        "int4": fitted(small),
        "board int8, folded": fitted(board, outliers=None),
        "board int8, chosen outliers": fitted(board),
        "board int4": fitted(board4),
    }


def counted(recipe: Any) -> dict[str, int]:
    """Counts the layers by how many channels they keep in floating point."""
    counts: dict[str, int] = {}
    for _, _, layer in recipe.layers():
        if layer.precision == "int8":
            key = str(len(layer.outliers))
            counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: int(item[0])))


def measure(
    checkpoint: Path,
    data: Path,
    num_tokens: int,
    num_calibration: int,
    wanted: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Mapping[str, Any]]:
    """Yields a row for float32, and for each recipe that is wanted; all of them, if none is."""
    from ..calibration.graphs import num_bytes
    from ..calibration.workbench import typed_spec
    from ..export.onnx_graph.trace import trace
    from ..export.settings import ExportSettings
    from ..export.source import load_source

    say(f"reading {checkpoint.name}")
    # A board's graph is whole: one session has trunk and head.
    source = load_source(checkpoint, ExportSettings(target="orin-nano"))
    (graph,) = source.graphs
    shapes = graph.shapes((WINDOW,), (WINDOW,))
    spec = next(s for s in graph.specs(shapes, precision="fp32") if s.rows == WINDOW)
    count = num_calibration + num_tokens // WINDOW
    windows = read_windows(data, source.tokenizer.encode, count)
    if len(windows) < num_calibration + 2:
        raise click.ClickException(
            f"--data {data} has {len(windows)} windows of {WINDOW} tokens: give a longer text"
        )
    chosen, measured = windows[:num_calibration], windows[num_calibration:]
    say("tracing")
    exact = trace(graph, {"batch": 1, "rows": WINDOW, "context": WINDOW})
    makes = recipes_of(exact, spec, chosen)
    if unknown := [name for name in wanted if name not in makes]:
        raise click.UsageError(f"no recipe {unknown[0]!r}: choose of {', '.join(makes)}")

    def read(model: Any) -> tuple[np.ndarray, np.ndarray]:
        return read_text(open_session(model, 1), typed_spec(spec, model, ""), measured)

    say("measuring fp32")
    base, best = read(exact)
    yield {
        "recipe": "fp32",
        "mib": num_bytes(exact) / 2**20,
        "perplexity": float(np.exp(base.mean())),
        "tokens": len(best),
    }
    for name in wanted or makes:
        say(f"fitting {name}")
        recipe, model = makes[name]()
        say(f"measuring {name}")
        losses, top = read(model)
        yield {
            "recipe": name,
            "mib": num_bytes(model) / 2**20,
            **paired(losses, base),
            "same_top": float((top == best).mean()),
            "outliers": counted(recipe),
        }


@click.command("recipes", cls=DlmCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Text to choose channels on and to measure.",
)
@click.option("--tokens", type=click.IntRange(min=256), default=20_000)
@click.option(
    "--calibration",
    type=click.IntRange(min=1),
    default=24,
    help="Windows that channels and scales are chosen on.",
)
@click.option("--recipe", "wanted", multiple=True, help="Only this one; may be given repeatedly.")
@out_option("recipes")
def main(
    checkpoint: Path, data: Path, tokens: int, calibration: int, wanted: tuple[str, ...], out: Path
) -> None:
    """Measures what each recipe costs a causal CHECKPOINT (folder or GGUF file).

    Goal: int8 with chosen outliers at most 1.005 times float32's perplexity, int4 of a 4-bit file
    1.03.
    """
    circumstances = {**record(), "model": checkpoint.name, "text": data.name}
    rows: list[Mapping[str, Any]] = []
    say = partial(click.echo, err=True)
    for row in measure(checkpoint, data, tokens, calibration, wanted, say):
        rows.append(row)
        write_json(out, {**circumstances, "rows": rows})  # an interrupted run keeps what it has
    print_table(COLUMNS, rows)


if __name__ == "__main__":
    main()
