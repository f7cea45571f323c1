"""Golden vectors: short decodes of real text, recorded once for `dlm-run --check` on any machine.

Recorded on the exported graph itself, which parity has held to PyTorch, so a deviation on a device
is the device's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphSpec, Manifest
from ...runtime.engines.base import Engine, EngineSet
from ...runtime.measure.check import GOLDEN_VERSION, record_run
from ...train.families.base import Corrupt
from .canvases import BlockInput, canvases, noisy_canvas, splits_of, starts_of

MAX_BLOCKS = 3
"""Committed blocks in front of the last canvases of a case."""
RATIOS = (0.0, 0.5, 1.0)


def _values(engine: Engine, canvas: BlockInput) -> dict[str, Any]:
    return {
        tensor.name: np.broadcast_to(
            np.asarray(canvas.inputs[tensor.role], tensor.dtype), tensor.shape
        )
        for tensor in engine.spec.inputs
        if not tensor.cache
    }


def _case(
    engine: Engine,
    spec: GraphSpec,
    manifest: Manifest,
    ids: np.ndarray,
    corrupt: Corrupt | None,
    seed: int,
) -> dict[str, Any]:
    last = min(starts_of(spec, manifest)[-1], MAX_BLOCKS * spec.rows)
    has_cache = any(tensor.cache for tensor in spec.inputs)
    runs = []
    for start in range(0, last + 1, spec.rows):
        clean = noisy_canvas(spec, ids, start, corrupt, 0.0, seed)
        if start in (0, last):
            for split in splits_of(spec):
                for canvas in canvases(spec, ids, start, corrupt, seed, split):
                    if canvas.mask_ratio in RATIOS:
                        runs.append(record_run(engine, _values(engine, canvas), commit=None))
        if has_cache and start < last:
            runs.append(record_run(engine, _values(engine, clean), commit=start))
    return {"graph": spec.name, "dims": dict(spec.dims), "runs": runs}


def _head_case(engine: Engine, spec: GraphSpec, rows: np.ndarray) -> dict[str, Any]:
    """One run over as many rows as the shape has, in four decimals, which JSON keeps short."""
    given = np.round(np.resize(rows, (1, spec.rows, rows.shape[1])).astype(np.float64), 4)
    run = record_run(engine, {spec.tensor("hidden_rows").name: given}, commit=None)
    return {"graph": spec.name, "dims": dict(spec.dims), "runs": [run]}


def golden_vectors(
    manifest: Manifest,
    engines: EngineSet,
    ids: np.ndarray,
    noises: Mapping[str, Corrupt | None],
    *,
    seed: int,
    rows: np.ndarray | None = None,
) -> bytes:
    """Records every graph shape of a bundle.

    Args:
        ids: Text (max_position,) int32.
        noises: By graph name, what its canvases go through.
        rows: What a head that is a graph of its own reads, (n, D) float32.

    Returns:
        The JSON of member `golden.json`.
    """
    cases = []
    for spec in manifest.graphs:
        if spec.batch > 1:  # checked against these
            continue
        engine = engines.engine(spec)
        if any(tensor.role == "hidden_rows" for tensor in spec.inputs):
            assert rows is not None
            cases.append(_head_case(engine, spec, rows))
        else:
            cases.append(_case(engine, spec, manifest, ids, noises[spec.name], seed))
    return (json.dumps({"version": GOLDEN_VERSION, "cases": cases}) + "\n").encode()
