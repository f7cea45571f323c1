"""Runs every shape of an unpacked bundle and prints what it took, as JSON: the measured side of
`predict`, in a process of its own so that its memory is a device's and not a trainer's.

    python -m dlm_edge.benchmarks.run_shapes FOLDER THREADS SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime import pipeline  # what a decoding process loads; its memory counts
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest_json import manifest_from_json
from ..runtime.engines import open_engines
from ..runtime.engines.base import Engine
from .clocks import clock_for, timed

assert pipeline


def resident_mib() -> float:
    """Memory of this process now."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("this system says nothing about memory")


def fill(engine: Engine, vocab_size: int, rng: np.random.Generator) -> None:
    """Gives a graph a full context and a block of any ids."""
    for tensor in engine.spec.inputs:
        array = engine.inputs[tensor.name]
        match tensor.role:
            case "canvas":
                array[...] = rng.integers(0, vocab_size, array.shape)
            case "start":
                array[...] = 0 if engine.spec.context < engine.spec.rows else engine.spec.context
            case "split":
                array[...] = 0
            case "time":
                array[...] = 0.5
            case _:
                array[...] = rng.standard_normal(array.shape)


def main() -> None:
    """See the module."""
    folder, threads, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    manifest = manifest_from_json((folder / "manifest.json").read_bytes())
    bundle = Bundle(path=folder, sha256="", manifest=manifest, folder=folder)
    clock = clock_for(threads)
    rng = np.random.default_rng(0)
    engines = open_engines(bundle, "onnxruntime", threads)
    taken: list[list[float]] = [[] for _ in manifest.graphs]
    for spec in manifest.graphs:
        engine = engines.engine(spec)
        fill(engine, manifest.vocab_size, rng)
        engine.run()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        for spec, values in zip(manifest.graphs, taken, strict=True):
            values.append(timed(engines.engine(spec).run, clock)[1])
        rounds += 1
    result: dict[str, Any] = {
        "rounds": rounds,
        "resident_mib": resident_mib(),
        "shapes": [
            {
                "graph": spec.name,
                "dims": dict(spec.dims),
                "best_ms": 1e3 * min(values),
                "median_ms": 1e3 * float(np.median(values)),
            }
            for spec, values in zip(manifest.graphs, taken, strict=True)
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
