"""Does the exported graph compute what the PyTorch module computes? Measured before packing.

Both sides prefill their own caches with clean text, block by block, and then run the same canvases,
so that a fault in new keys and values shows as well as one in the logits. Where the family offers a
forward without a cache, cached logits are held to that too. What a graph gives to a head that is a
graph of its own is compared as the logits that PyTorch's head makes of it, and the head on rows of
that kind. Knows graphs by their tensors' roles only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec
from ...runtime.engines.base import Engine, EngineSet
from ...runtime.errors import EngineError
from ...runtime.families.window import append
from ...runtime.ops.host import NumpyOps
from ...runtime.side_by_side import for_batch
from ...train.families.base import ExportGraph
from .canvases import (
    MANY_SCORES,
    BlockInput,
    canvases,
    is_large,
    noisy_canvas,
    splits_of,
    starts_of,
)
from .figures import TOLERANCES, LogitErrors, Tolerance

FEW_RATIOS = (0.0, 0.5, 1.0)


class TorchSide:
    """The module as an engine: same inputs, its own cache."""

    def __init__(self, graph: ExportGraph, spec: GraphSpec) -> None:
        self._graph = graph
        self._result = spec.result.role
        self._spec = spec
        self.inputs = {
            # PyTorch keeps its own cache as it computes it, whatever the exported graph stores.
            tensor.role: torch.zeros(
                tensor.shape,
                dtype=torch.float32 if tensor.cache else getattr(torch, tensor.dtype),
            )
            for tensor in spec.inputs
        }

    @torch.no_grad()
    def run(self, canvas: BlockInput, *, commit: bool) -> np.ndarray:
        """Runs one canvas; with `commit`, stores its keys and values. Returns the logits, or what
        a head reads."""
        for role, value in canvas.inputs.items():
            if role in self.inputs:
                self.inputs[role][...] = torch.as_tensor(np.array(value))
        given = [self.inputs[tensor.role] for tensor in self._graph.inputs]
        outputs = dict(
            zip(
                (tensor.role for tensor in self._graph.outputs),
                self._graph.module(*given),
                strict=True,
            )
        )
        for cache, tensor in self._spec.new_rows if commit else ():
            new = outputs[tensor.role]
            self.inputs[cache][canvas.start : canvas.start + len(new)] = new
        return outputs[self._result].numpy()


def run_engine(engine: Engine, canvas: BlockInput, *, commit: bool) -> np.ndarray:
    """Runs one canvas on an engine; with `commit`, stores its keys and values. Returns the logits,
    or what a head reads."""
    for tensor in engine.spec.inputs:
        value = canvas.inputs.get(tensor.role)
        if value is not None:
            engine.inputs[tensor.name][...] = value
    engine.run()
    spec = engine.spec
    if commit:
        append(NumpyOps(), engine, canvas.start, spec.rows)
    return engine.outputs[spec.result.name]


def find_head(graphs: Sequence[ExportGraph]) -> ExportGraph | None:
    """Returns the graph that makes logits of what another one computes, if there is one."""
    for graph in graphs:
        if any(tensor.role == "hidden_rows" for tensor in graph.inputs):
            return graph
    return None


def hidden_rows(
    graphs: Sequence[ExportGraph], manifest: Manifest, ids: np.ndarray, seed: int
) -> np.ndarray | None:
    """Returns rows (n, D) float32 as a head meets them: PyTorch's, at the begin of the text.

    None where no graph gives such rows.
    """
    for graph in graphs:
        specs = [spec for spec in manifest.graphs if spec.name == graph.name]
        if any(tensor.role == "hidden" for tensor in graph.outputs):
            spec = max(specs, key=lambda item: item.rows)
            noisy = noisy_canvas(spec, ids, 0, graph.corrupt, 1.0, seed)
            return TorchSide(graph, spec).run(noisy, commit=False)[0]
    return None


def compare(
    graph: ExportGraph,
    manifest: Manifest,
    engines: EngineSet,
    ids: np.ndarray,
    *,
    precision: str,
    seed: int,
    head: ExportGraph | None = None,
    rows: np.ndarray | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measures every shape of a graph; returns the report's figures.

    Args:
        ids: Text (max_position,) int32.
        precision: Key of TOLERANCES.
        head: The graph that makes logits of what this one computes, if it gives none itself.
        rows: For such a head: what it reads, (n, D).

    Raises:
        EngineError: A figure is beyond its tolerance.
    """
    tolerance = TOLERANCES[precision]
    report = []
    specs = [item for item in manifest.graphs if item.name == graph.name and item.batch == 1]
    for number, spec in enumerate(specs):
        progress(number, len(specs))
        if graph is head and rows is not None:
            figures, cached = _compare_head(graph, engines, spec, rows, tolerance.tie)
        else:
            figures, cached = _compare_shape(
                graph, manifest, engines, spec, ids, seed, tolerance.tie, head
            )
        figures.require(tolerance, f"graph {spec.label}, against PyTorch")
        entry: dict[str, Any] = {"graph": spec.name, "dims": dict(spec.dims)}
        entry["splits"] = list(splits_of(spec))
        entry["against_torch"] = figures.to_json()
        if cached.rows:
            cached.require(tolerance, f"graph {spec.label}, cached against uncached")
            entry["cached_against_uncached"] = cached.to_json()
        report.append(entry)
    return {"tolerance": _as_json(tolerance), "shapes": report}


def _as_json(tolerance: Tolerance) -> dict[str, float]:
    return {
        "max_relative_error": tolerance.relative,
        "top1_agreement": tolerance.top1,
        "mean_divergence_nats": tolerance.divergence,
    }


def _compare_shape(
    graph: ExportGraph,
    manifest: Manifest,
    engines: EngineSet,
    spec: GraphSpec,
    ids: np.ndarray,
    seed: int,
    tie: float,
    head: ExportGraph | None,
) -> tuple[LogitErrors, LogitErrors]:
    """Compares one shape at several starts; the caches grow on both sides as text commits."""
    figures, cached = LogitErrors(tie=tie), LogitErrors(tie=tie)
    apart = head is not None and spec.result.role == "hidden"
    few = is_large(spec, manifest)
    count = min(spec.rows, max(2, MANY_SCORES // manifest.vocab_size))
    rows = np.linspace(0, spec.rows - 1, count).astype(int)
    torch_side = TorchSide(graph, spec)
    engine = engines.engine(spec)
    for split in splits_of(spec):
        # Two blocks in one run store what two runs of one store: the cache is filled anew.
        filled = 0
        for start in starts_of(spec, manifest):
            for begin in range(filled, start, spec.rows):
                clean = noisy_canvas(spec, ids, begin, graph.corrupt, 0.0, seed, split)
                torch_side.run(clean, commit=True)
                run_engine(engine, clean, commit=True)
            filled = max(filled, start)
            for canvas in canvases(spec, ids, start, graph.corrupt, seed, split):
                if few and canvas.mask_ratio not in FEW_RATIOS:
                    continue
                found = run_engine(engine, canvas, commit=False)[:, rows]
                wanted = torch_side.run(canvas, commit=False)[:, rows]
                if apart:
                    assert head is not None
                    found, wanted = _with_head(head, found), _with_head(head, wanted)
                figures.add(found, wanted, canvas.mask_ratio)
                if graph.uncached is not None and canvas.mask_ratio in (0.0, 1.0):
                    plain = _uncached(graph, ids[None, : start + split], canvas)
                    seen = rows >= split
                    cached.add(found[:, seen], plain[:, rows[seen] - split], canvas.mask_ratio)
    return figures, cached


@torch.no_grad()
def _with_head(head: ExportGraph, rows: np.ndarray) -> np.ndarray:
    """Makes logits (1, n, V) of rows (1, n, D), by PyTorch."""
    return head.module(torch.from_numpy(np.ascontiguousarray(rows, np.float32)))[0].numpy()


def _compare_head(
    head: ExportGraph, engines: EngineSet, spec: GraphSpec, rows: np.ndarray, tie: float
) -> tuple[LogitErrors, LogitErrors]:
    """Compares a head on all the rows, as many at a time as its shape has."""
    figures = LogitErrors(tie=tie)
    engine = engines.engine(spec)
    tensor = spec.tensor("hidden_rows")
    for begin in range(0, len(rows), spec.rows):
        given = np.take(rows, range(begin, begin + spec.rows), axis=0, mode="wrap")[None]
        engine.inputs[tensor.name][...] = given
        engine.run()
        figures.add(engine.outputs[spec.tensor("logits").name], _with_head(head, given), 1.0)
    return figures, LogitErrors(tie=tie)


@torch.no_grad()
def _uncached(graph: ExportGraph, context: np.ndarray, canvas: BlockInput) -> np.ndarray:
    assert graph.uncached is not None
    given = torch.as_tensor(context), torch.as_tensor(canvas.ids[:, canvas.split :])
    return graph.uncached(*given, canvas.extra).numpy()


def compare_batches(
    manifest: Manifest, engines: EngineSet, *, precision: str, seed: int
) -> list[dict[str, Any]]:
    """Runs every shape for several texts on random canvases, which then run alone.

    Args:
        precision: Key of TOLERANCES.

    Returns:
        The report's figures, one object per shape.

    Raises:
        EngineError: A figure is beyond its tolerance.
    """
    report = []
    limit = TOLERANCES[precision].relative
    for spec in manifest.graphs:
        if spec.batch == 1:
            continue
        values = _inputs(spec, manifest, np.random.default_rng(seed))
        together = _run(engines, spec, values)
        worst = 0.0
        for slot in range(spec.batch):
            own = {
                tensor.name: np.take(values[tensor.name], [slot], axis=tensor.batch_axis)
                for tensor in spec.inputs
            }
            alone = _run(engines, for_batch(spec, 1), own)[0]
            error = np.abs(together[slot] - alone).max() / np.abs(alone).max()
            worst = max(worst, float(error))
        if not worst <= limit:
            raise EngineError(
                f"graph {spec.label} differs by {worst:.1e} from the same text alone, more than "
                f"{limit:.0e}: export without --batch"
            )
        report.append({"graph": spec.name, "dims": dict(spec.dims), "max_relative_error": worst})
    return report


def _inputs(spec: GraphSpec, manifest: Manifest, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Gives texts in the middle of their caches, each at a place of its own."""
    room = max(0, min(spec.context, manifest.max_position - spec.rows))

    def values(tensor: TensorSpec) -> np.ndarray:
        match tensor.role:
            case "canvas":
                return rng.integers(0, manifest.vocab_size, tensor.shape)
            case "start":
                return rng.integers(0, room + 1, tensor.shape)
            case "split":
                return np.zeros(tensor.shape)
            case _:
                return rng.random(tensor.shape)

    return {tensor.name: values(tensor).astype(tensor.dtype) for tensor in spec.inputs}


def _run(engines: EngineSet, spec: GraphSpec, values: dict[str, np.ndarray]) -> np.ndarray:
    """Gives a run's logits, or the rows that a head reads, as float32: (batch, …)."""
    engine = engines.engine(spec)
    for name, value in values.items():
        engine.inputs[name][...] = value
    engine.run()
    return np.array(engine.outputs[spec.result.name], np.float32)
