"""Graphs for several texts at once, against the same graphs for one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec
from ...runtime.engines.base import EngineSet
from ...runtime.errors import EngineError
from ...runtime.side_by_side import for_batch
from .figures import TOLERANCES


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
    found = next(item for item in spec.outputs if item.role in ("logits", "hidden"))
    return np.array(engine.outputs[found.name], np.float32)
