"""`dlm-run --board-report`: all that proves or disproves this machine, in one JSON object.

Golden vectors on the engine, every kernel against its NumPy twin, tokens/s, the time of a run and
of sampling, versions and memory. What cannot be run is listed with its reason, never left out, so
that a report from a board with a fault is as useful as one without.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.bundle import bundle_facts
from ..engines import FELL_BACK
from ..errors import DataError, DlmError
from ..files import write_whole, writing
from ..gpu.replay import ReplayingDevice
from ..ops.cuda.ops import CudaOps
from ..ops.primitives import check_kernels
from ..ops.unmask import UNMASK
from ..ops.unmask.contract import UnmaskSpec
from ..pipeline import Pipeline
from ..process import peak_rss_mib
from .check import check_bundle
from .machine import machine_facts, package_versions

FORMAT = "dlm-board-report 1"
NUM_TEXTS = 4
"""Texts timed, after one that warms up."""
MAX_TOKENS = 128
"""New tokens of each, at most."""
SECONDS_PER_SHAPE = 1.0
"""How long each graph shape is run for its time."""
_MIB = 1 << 20


def board_report(
    load: Callable[[], Pipeline],
    notes: list[str],
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Makes the report.

    Args:
        load: Opens the bundle on the engine asked for; may fail.

    Returns:
        JSON; `ok` is true if every part that can be run here was run and agrees, on no engine but
        the one meant.
    """
    report: dict[str, Any] = {
        "format": FORMAT,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine_facts(),
        "versions": package_versions(),
    }
    progress("opening the engine; a plan is built if there is none")
    try:
        pipeline = load()
    except Exception as error:  # on an unknown machine, anything
        return {**report, "ok": False, "engine": fault(error), "notes": notes}
    with pipeline:
        shapes = [spec.label for spec in pipeline.manifest.graphs]
        report["bundle"] = bundle_facts(pipeline.bundle) | {"shapes": shapes}
        report["engine"] = engine_facts(pipeline)
        parts: dict[str, Callable[[], Any]] = {
            "golden": lambda: check_bundle(pipeline.bundle, pipeline.model),
            "kernels": lambda: kernels(pipeline),
            "runs": lambda: run_times(pipeline),
            "speed": lambda: speed(pipeline),
            "memory": lambda: memory(pipeline),
        }
        for name, part in parts.items():
            progress(name)
            try:
                report[name] = part()
            except Exception as error:
                report[name] = fault(error)
    report["notes"] = notes
    report["ok"] = _verdict(report)
    return report


def fault(error: Exception) -> dict[str, Any]:
    """Returns what went wrong, and of an error that is none of ours, also where: for who mends it.

    Files without their folders: those may name a user.
    """
    if isinstance(error, DlmError):
        return {"error": str(error)}
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": f"{type(error).__name__}: {' '.join(str(error).split())}",
        "where": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _verdict(report: dict[str, Any]) -> bool:
    parts = (report[name] for name in ("golden", "kernels", "runs", "speed", "memory"))
    failed = any(isinstance(part, dict) and "error" in part for part in parts)
    kernels_found = report["kernels"]
    agree = not isinstance(kernels_found, list) or all(item["ok"] for item in kernels_found)
    meant = not report["engine"]["reason"].startswith(FELL_BACK)
    return not failed and agree and meant and bool(report["golden"].get("ok"))


def engine_facts(pipeline: Pipeline) -> dict[str, Any]:
    """Returns what runs the bundle, and why."""
    engines = pipeline.engines
    return {
        "name": engines.name,
        "reason": engines.reason,
        "threads": engines.threads,
        "load_seconds": {part: round(value, 4) for part, value in pipeline.load_seconds.items()},
    }


def kernels(pipeline: Pipeline) -> list[dict[str, Any]] | str:
    """Returns how each kernel compares with NumPy."""
    if not isinstance(pipeline.model.ops, CudaOps):
        return "not run: no GPU"
    return check_kernels(pipeline.model.ops)


def _milliseconds(call: Callable[[], None], wait: Callable[[], None]) -> float:
    """Returns the time of a call in a row of them, the device's time if it is one."""
    call()
    wait()
    number, begin = 0, time.perf_counter()
    elapsed = 0.0
    while not number or (elapsed < SECONDS_PER_SHAPE and number < 10_000):
        for _ in range(8):
            call()
        wait()
        number += 8
        elapsed = time.perf_counter() - begin
    return round(1e3 * elapsed / number, 4)


def run_times(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Returns, per shape, the time of a graph run in ms, and of a rule's selection in all rows."""
    manifest, ops, device = pipeline.manifest, pipeline.model.ops, pipeline.engines.device
    settings = pipeline.settings()
    selection = settings.selection

    def wait() -> None:
        if device is not None:
            device.synchronize()

    found = []
    for spec in pipeline.engines.specs:
        engine = pipeline.engines.engine(spec)
        row: dict[str, Any] = {"name": spec.name, "dims": dict(spec.dims)}
        row["run_ms"] = _milliseconds(engine.run, wait)
        outputs = [tensor for tensor in spec.outputs if tensor.role == "logits"]
        if outputs and selection is not None:
            mask = -1 if manifest.mask_token_id is None else manifest.mask_token_id
            own = UnmaskSpec(
                block=spec.rows,
                vocab_size=manifest.vocab_size,
                sampling=settings.sampling,
                selection=selection,
                seed=0,
                sample_index=0,
                mask_token_id=mask,
                end_ids=manifest.ends,
            )
            unmask = ops.bind(UNMASK)
            canvas = unmask.canvas(own)
            every = np.ones(spec.rows, bool)
            ids = np.full(spec.rows, mask, np.int32)
            unmask.begin_block(canvas, ids, every, position=0, first=0)
            logits = engine.outputs[outputs[0].name]
            row["sample_ms"] = _milliseconds(lambda: unmask.sample(logits, canvas), wait)  # noqa: B023
        found.append(row)
    return found


def speed(pipeline: Pipeline) -> dict[str, Any]:
    """Returns tokens/s of the bundle's own settings, over texts of different seeds."""
    tokens = runs = 0
    seconds: dict[str, float] = {}
    for seed in range(-1, NUM_TEXTS):
        result = pipeline.generate(
            "", max_tokens=min(MAX_TOKENS, pipeline.manifest.max_position - 1), seed=max(seed, 0)
        ).result()
        if seed >= 0:
            tokens, runs = tokens + len(result.token_ids), runs + result.nfe
            for stage, value in result.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
    busy = seconds["total"] - seconds["prepare"]
    device = pipeline.engines.device
    steps = (
        {"captured": device.num_captured, "replayed": device.num_replayed}
        if isinstance(device, ReplayingDevice)
        else "not run: no GPU"
    )
    return {
        "texts": NUM_TEXTS,
        "tokens": tokens,
        "tokens_per_s": round(tokens / busy, 2) if busy > 0 else 0.0,
        "graph_runs": runs,
        "tokens_per_run": round(tokens / runs, 3),
        "ms_per_run": round(1e3 * busy / runs, 4),
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "settings": pipeline.settings().to_json(),
        "steps": steps,
    }


def memory(pipeline: Pipeline) -> dict[str, Any]:
    """Returns the process's peak and, of a GPU, what is free and what there is, in MiB."""
    found: dict[str, Any] = {"peak_rss_mib": round(peak_rss_mib(), 1)}
    if pipeline.engines.device is not None:
        free, total = pipeline.engines.device.memory()
        found["gpu_free_mib"] = round(free / _MIB, 1)
        found["gpu_total_mib"] = round(total / _MIB, 1)
    return found


def write_report(report: dict[str, Any], path: Path) -> None:
    """Writes the report so that the file is whole or not there; DataError if it cannot be."""
    with writing(f"the report {path}", "choose another FILE", DataError):
        write_whole(path, json.dumps(report, indent=1) + "\n")
