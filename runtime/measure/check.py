"""`dlm-run --check`: does this engine, on this machine, compute what the exporter saw?

Export records golden vectors: a sequence of runs per graph shape, and of each run's logits the
most likely tokens with their values and the log-sum-exp of some rows. Replaying them here needs
neither torch nor the text they came from. Knows graphs by their tensors' roles only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.manifest import GraphSpec, graph_key
from ..engines.base import Engine
from ..errors import BundleError, EngineError
from ..families.base import LoadedModel
from ..families.window import append
from ..files import parse_json
from ..ops.core import Ops
from ..ops.host import NumpyOps

GOLDEN_NAME = "golden.json"
GOLDEN_VERSION = 2
RELATIVE_TOLERANCE = 2e-3
"""Largest error of a logit as a share of the largest, for graphs that compute in float32."""
FP16_TOLERANCE = 1e-2
"""The same where a graph may compute in float16: engines add up in different orders."""
INT8_TOLERANCE = 5e-2
"""The same where activations are rounded to integers: a value on the edge between two steps falls
to either side as sums are ordered. Two orders on one CPU were 0.03 apart (4 M parameters)."""
NUM_TOP = 4
"""Most likely tokens recorded per row."""
NUM_ROWS = 8
"""Rows recorded per run at most."""
_TOLERANCES = {"fp32": RELATIVE_TOLERANCE, "int8": INT8_TOLERANCE, "int4": INT8_TOLERANCE}


def record_run(
    engine: Engine, values: Mapping[str, Any], *, commit: int | None, ops: Ops | None = None
) -> dict[str, Any]:
    """Runs an engine and describes the run as JSON: inputs, and a sample of the logits (of what
    a head reads, from a graph without one).

    Args:
        engine: Its KV cache holds what earlier runs of the case committed.
        values: By tensor name, for every input but caches.
        commit: Row of the caches that new keys and values go to afterwards; None: nowhere.
    """
    ops = ops or NumpyOps()
    _execute(engine, values, commit, ops)
    run: dict[str, Any] = {
        "inputs": {name: _listed(np.asarray(value)) for name, value in values.items()},
        "commit": commit,
    }
    logits = _logits(engine, ops)
    rows = np.unique(np.linspace(0, len(logits) - 1, NUM_ROWS).astype(int))
    top = np.argsort(-logits[rows], axis=1, kind="stable")[:, :NUM_TOP]
    run["rows"] = rows.tolist()
    run["top_ids"] = top.tolist()
    run["top_logits"] = _rounded(np.take_along_axis(logits[rows], top, axis=1))
    run["log_sum_exp"] = _rounded(_log_sum_exp(logits[rows]))
    return run


def _listed(values: np.ndarray) -> list[Any]:
    """As JSON numbers; a table of zeros and ones takes half the space as integers."""
    flat = values.ravel()
    whole = flat.astype(np.int64)
    return (whole if np.array_equal(whole, flat) else flat).tolist()


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values.astype(np.float64), 6).tolist()


def _execute(engine: Engine, values: Mapping[str, Any], commit: int | None, ops: Ops) -> None:
    spec = engine.spec
    for tensor in spec.inputs:
        if not tensor.cache:
            value = np.asarray(values[tensor.name], dtype=tensor.dtype)
            ops.assign(engine.inputs[tensor.name], value.reshape(tensor.shape))
    engine.run()
    if commit is not None:
        if not 0 <= commit <= spec.context - spec.rows:
            raise ValueError(f"row {commit} is not in a context of {spec.context}")
        append(ops, engine, commit, spec.rows)


def _logits(engine: Engine, ops: Ops) -> np.ndarray:
    """The run's logits, or what it is run for else, as (rows, V or D) float32."""
    logits = ops.to_host(engine.outputs[engine.spec.result.name])
    return logits.reshape(-1, logits.shape[-1]).astype(np.float32)


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1)
    return top + np.log(np.exp((logits - top[:, None]).astype(np.float64)).sum(axis=1))


def check_bundle(bundle: Bundle, model: LoadedModel) -> dict[str, Any]:
    """Replays the bundle's golden vectors on its model; returns figures, with `ok` the verdict.

    Raises:
        BundleError: The bundle has no golden vectors, or they do not fit its graphs.
        EngineError: A run failed.
    """
    engines, ops = model.engines, model.ops
    cases, shapes = _read(bundle), {spec.key: spec for spec in engines.specs}
    error = largest = 0.0
    rows = agreeing = 0
    try:
        for case in cases:
            engine = engines.engine(shapes[graph_key(case["graph"], case["dims"])])
            _check_spec(engine.spec, case)
            for run in case["runs"]:
                _execute(engine, run["inputs"], run["commit"], ops)
                logits = _logits(engine, ops)[run["rows"]]
                top = np.asarray(run["top_ids"], dtype=np.int64)
                wanted = np.asarray(run["top_logits"], dtype=np.float64)
                found = np.take_along_axis(logits, top, axis=1)
                sums = np.asarray(run["log_sum_exp"], dtype=np.float64)
                error = max(
                    error,
                    _largest(found - wanted),
                    _largest(_log_sum_exp(logits) - sums),
                )
                largest = max(largest, _largest(wanted))
                agreeing += int((logits.argmax(axis=1) == top[:, 0]).sum())
                rows += len(top)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as failure:
        raise BundleError(
            f"the golden vectors of {bundle.path.name} do not fit its graphs "
            f"({' '.join(str(failure).split())[:80]}): export the bundle again"
        ) from failure
    relative = error / largest if largest else math.inf
    tolerance = _TOLERANCES.get(bundle.manifest.precision, FP16_TOLERANCE)
    return {
        "ok": bool(rows) and relative <= tolerance,
        "engine": engines.name,
        "cases": len(cases),
        "rows": rows,
        "max_abs_error": error,
        "max_relative_error": relative,
        "tolerance": tolerance,
        "top1_agreement": agreeing / rows if rows else 0.0,
    }


def _largest(values: np.ndarray) -> float:
    """Largest magnitude; infinite if anything is not finite."""
    return float(np.abs(values).max()) if np.isfinite(values).all() else math.inf


def _read(bundle: Bundle) -> Sequence[Any]:
    path = bundle.member(GOLDEN_NAME)
    try:
        golden = parse_json(path.read_bytes())
        if golden["version"] != GOLDEN_VERSION:
            raise ValueError(f"version {golden['version']}")
        return list(golden["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.path.name} has no golden vectors that this version reads "
            f"({' '.join(str(error).split())[:60]}): export the bundle again"
        ) from error


def _check_spec(spec: GraphSpec, case: Mapping[str, Any]) -> None:
    names = {tensor.name for tensor in spec.inputs if not tensor.cache}
    if any(set(run["inputs"]) != names for run in case["runs"]):
        raise EngineError(f"the golden vectors name other inputs than graph {spec.name} has")
