"""How fast this machine's CPU runs our graphs' operators: the micro-benchmark behind `host`.

Runs on the same engine as models do. Each probe is a chain of one operator; its figure is the best
of several runs, since whatever else the machine does only ever adds time. Takes about fifteen
seconds and 300 MiB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import GraphSpec, Manifest, Member
from ...runtime.engines.base import Engine
from ...runtime.engines.onnxruntime import OnnxRuntimeEngines
from ...runtime.errors import DeviceError
from ...runtime.ops.host import NumpyOps
from ...runtime.ops.rows.contract import Sampling
from ...runtime.ops.unmask import UNMASK
from ...runtime.ops.unmask.contract import Kind, Score, Selection, UnmaskSpec
from .probe_graphs import Op, onnx_bytes, probe_spec

ROWS = (1, 8, 32, 128, 512)
"""Rows of the products that are timed; between them rates are interpolated."""
INNER, COLUMNS = 512, 1024
"""Shape of the weights: 2 MiB each, as in models of 10 to 60 M parameters."""
FOOTPRINTS_MIB = (4, 24, 96)
"""Weights a run goes through: near a core, about a shared cache, beyond any."""
ITEMS = (1 << 13, 1 << 16, 1 << 20)
"""Elements of the pointwise and moving operations that are timed."""
HEADS, KEYS, HEAD_DIM = 8, 320, 64
"""Shape of the attention products that are timed."""
_FLOAT, _UINT8 = 1, 2
"""TensorProto's types."""
SECONDS = 0.25
"""Time spent on one probe at least, three runs at least."""

Shapes = Mapping[str, Sequence[int | str]]


def best_seconds(run: Callable[[], None], threads: int, seconds: float = SECONDS) -> float:
    """Returns the shortest of several runs.

    With one thread that is CPU time: on a busy machine a run of more than a few milliseconds is
    never left alone, and its wall time would be that of the others, too. Where a run is over
    before the clock ticks, several are timed together.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    count, together = 0, 1
    while count < 3 or time.perf_counter() < end:
        begin = clock()
        for _ in range(together):
            run()
        taken = clock() - begin
        if taken > 0:
            best = min(best, taken / together)
            count += 1
        else:
            best, count, together = float("inf"), 0, 2 * together
    return best


class Prober:
    """Times probe graphs on ONNX Runtime."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.rng = np.random.default_rng(0)

    def time(
        self,
        ops: Sequence[Op],
        inputs: Shapes,
        outputs: Shapes,
        weights: Mapping[str, Any],
        rows: Sequence[int] = (1,),
    ) -> list[float]:
        """Seconds of one run of a graph, for each value of its symbol `rows`."""
        specs = tuple(probe_spec("probe", inputs, outputs, number) for number in rows)
        with tempfile.TemporaryDirectory(prefix="dlm-probe-") as name:
            folder = Path(name)
            (folder / "graphs").mkdir()
            data = onnx_bytes(ops, inputs, outputs, weights)
            (folder / specs[0].file).write_bytes(data)
            engines = OnnxRuntimeEngines(_bundle(folder, specs, len(data)), threads=self.threads)
            try:
                return [self._time(engines.engine(spec)) for spec in specs]
            finally:
                engines.close()

    def _time(self, engine: Engine) -> float:
        for array in engine.inputs.values():
            array[...] = self.rng.standard_normal(array.shape)
        return best_seconds(engine.run, self.threads)

    def chain(
        self, op: str, shape: Sequence[int], count: int, second: Sequence[int] | None
    ) -> float:
        """Seconds per node of a chain of `count` nodes x -> op(x[, y])."""
        inputs = {"x": shape} | ({} if second is None else {"y": second})
        more = () if second is None else ("y",)
        ops = [
            Op(name=op, inputs=(f"v{i}" if i else "x", *more), outputs=(f"v{i + 1}",))
            for i in range(count)
        ]
        return self.time(ops, inputs, {f"v{count}": shape}, {})[0] / count

    def moves(self, shape: Sequence[int], count: int) -> float:
        """Seconds per node of a chain of transpositions of (1, a, b, c) to (1, b, a, c) and back.

        Additions are between them, or a pair would cancel and be left out; their
        time is taken off again.
        """
        assert count % 2 == 0
        other = (shape[0], shape[2], shape[1], shape[3])
        ops, name = [], "x"
        for i in range(count):
            turn = {"perm": (0, 2, 1, 3)}
            ops.append(Op(name="Transpose", inputs=(name,), outputs=(f"t{i}",), attributes=turn))
            ops.append(Op(name="Add", inputs=(f"t{i}", f"y{(i + 1) % 2}"), outputs=(f"v{i}",)))
            name = f"v{i}"
        inputs = {"x": shape, "y0": shape, "y1": other}
        both = self.time(ops, inputs, {name: shape}, {})[0] / count
        return max(both - self.chain("Add", shape, count, shape), 0.1 * both)

    def products(self, footprint_mib: int) -> list[float]:
        """Multiply-accumulates per second of rows times weights, for each of ROWS.

        A chain of products out and back, through this much of weights.
        """
        count = max(2, footprint_mib * 2**20 // (INNER * COLUMNS * 4))
        sizes = [(INNER, COLUMNS), (COLUMNS, INNER)]
        weights = {}
        for i in range(count):
            # Of a spread that keeps values as large as they were, through the whole chain.
            spread = (12 / sizes[i % 2][0]) ** 0.5
            weights[f"w{i}"] = (self.rng.random(sizes[i % 2], np.float32) - 0.5) * spread
        ops = [
            Op(name="MatMul", inputs=(f"v{i}", f"w{i}"), outputs=(f"v{i + 1}",))
            for i in range(count)
        ]
        return self._rates(ops, weights, count)

    def _rates(self, ops: Sequence[Op], weights: Mapping[str, Any], count: int) -> list[float]:
        """Multiply-accumulates per second of a chain of `count` products, for each of ROWS."""
        width = (INNER, COLUMNS)[count % 2]
        ends = {"v0": (1, "rows", INNER)}, {f"v{count}": (1, "rows", width)}
        seconds = self.time(ops, *ends, weights, ROWS)
        return [
            count * rows * INNER * COLUMNS / taken
            for rows, taken in zip(ROWS, seconds, strict=True)
        ]

    def integers(self, footprint_mib: int) -> list[float]:
        """As `products`, of INT8 weights and quantised activations.

        Between two products is only the Cast that joins them: what quantises activations and scales
        products differs between bundles, and a forecast counts it operator by operator.
        """
        count = max(2, footprint_mib * 2**20 // (INNER * COLUMNS))
        sizes = [(INNER, COLUMNS), (COLUMNS, INNER)]
        weights: dict[str, Any] = {"zero": np.array(128, np.uint8)}
        ops = [Op(name="Cast", inputs=("v0",), outputs=("q0",), attributes={"to": _UINT8})]
        for i in range(count):
            weights[f"w{i}"] = self.rng.integers(-127, 128, sizes[i % 2]).astype(np.int8)
            last = i == count - 1
            joined, kind = (f"v{count}", _FLOAT) if last else (f"q{i + 1}", _UINT8)
            ops += [
                Op(name="MatMulInteger", inputs=(f"q{i}", f"w{i}", "zero"), outputs=(f"i{i}",)),
                Op(name="Cast", inputs=(f"i{i}",), outputs=(joined,), attributes={"to": kind}),
            ]
        return self._rates(ops, weights, count)

    def attention(self) -> list[float]:
        """Multiply-accumulates per second of queries, keys and values, for each of ROWS."""
        ops = [
            Op(name="MatMul", inputs=("q", "k"), outputs=("s",)),
            Op(name="MatMul", inputs=("s", "v"), outputs=("o",)),
        ]
        inputs = {
            "q": (1, HEADS, "rows", HEAD_DIM),
            "k": (1, HEADS, HEAD_DIM, KEYS),
            "v": (1, HEADS, KEYS, HEAD_DIM),
        }
        seconds = self.time(ops, inputs, {"o": (1, HEADS, "rows", HEAD_DIM)}, {}, ROWS)
        macs = 2 * HEADS * KEYS * HEAD_DIM
        return [rows * macs / taken for rows, taken in zip(ROWS, seconds, strict=True)]


def _bundle(folder: Path, specs: tuple[GraphSpec, ...], size: int) -> Bundle:
    manifest = Manifest(
        family="probe",
        model={},
        vocab_size=1,
        mask_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        logit_shift=0,
        max_position=1,
        block_sizes=(),
        noise_schedule={},
        precision="fp32",
        target="host",
        graphs=specs,
        decoding={},
        provenance={},
        members={specs[0].file: Member(sha256="", size=size)},
    )
    return Bundle(path=folder, sha256="", manifest=manifest, folder=folder)


def time_sampling(rows: int, vocab_size: int) -> float:
    """Seconds of sampling and committing `rows` masked positions once."""
    unmask = NumpyOps().bind(UNMASK)
    spec = UnmaskSpec(
        block=rows,
        vocab_size=vocab_size,
        sampling=Sampling(temperature=1.0),
        selection=Selection(kind=Kind.THRESHOLD, score=Score.CONFIDENCE, limit=0.9),
        seed=0,
        sample_index=0,
        mask_token_id=1,
        end_ids=(),
        banned=(1,),
    )
    canvas = unmask.canvas(spec)
    ids, masked = np.ones(rows, np.int32), np.ones(rows, bool)
    logits = np.random.default_rng(0).standard_normal((1, rows, vocab_size)).astype(np.float32)

    def run() -> None:
        unmask.begin_block(canvas, ids, masked, position=0, first=0)
        unmask.sample(logits, canvas)
        unmask.commit(canvas)

    return best_seconds(run, 1, 0.1)


_FRESH = """
import importlib.util, sys
root, threads = sys.argv[1], int(sys.argv[2])
spec = importlib.util.spec_from_file_location(
    "dlm_edge", root + "/__init__.py", submodule_search_locations=[root])
package = importlib.util.module_from_spec(spec)
sys.modules["dlm_edge"] = package
spec.loader.exec_module(package)
import dlm_edge.runtime.pipeline
from dlm_edge.jetson.forecast.host_probe import Prober
from dlm_edge.runtime.process import peak_rss_mib
Prober(threads).chain("Add", (1, 8), 4, (1, 8))
print(peak_rss_mib())
"""


def resident_mib(threads: int) -> float:
    """Memory of a fresh process that has opened the engine and no model; raises DeviceError."""
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-c", _FRESH, str(root), str(threads)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1][:200]
        raise DeviceError(
            f"this machine cannot be measured: a fresh Python process failed ({reason}); run "
            "dlm-run --check, which shows what is missing"
        )
    return float(done.stdout.split()[-1])
