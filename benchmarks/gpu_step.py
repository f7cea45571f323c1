"""One step on a GPU, taken apart: engine, sampling, launch; ours against PyTorch's.

    python -m dlm_edge.benchmarks.gpu_step --size large

| figure | against | goal |
|---|---|---|
| sampling, commit, launch, host | captured torch.compile FP16 forward | at most 5 % of it |
| a step captured | the same step call by call | reported |
| each kernel | a device copy of its input | at most 1.25 times it |
| our sampling and commit | the same rule in PyTorch eager | 5 times faster |
| | the same under torch.compile | twice as fast |
| what follows a run over drafts | that run; the same rule in PyTorch | as above |

Weights are random and the forward is the exported module in float16, so the engine stands for what
TensorRT would do, not for a model. Every GPU time is that of many repetitions inside one captured
CUDA graph, divided, but for those called uncaptured or eager, which are timed as they are called.
Rounds interleave; figures are medians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from ..runtime.cli.common import DlmCommand
from ..runtime.families.table import read_rule
from ..runtime.gpu.facts import read_gpu
from ..runtime.ops.cuda.ops import CudaOps
from ..runtime.ops.cuda.state import MAX_BLOCK
from ..runtime.ops.transition import TRANSITION
from ..runtime.ops.transition.contract import TransitionSpec
from ..runtime.ops.transition.device import CudaTransition
from ..runtime.ops.unmask import UNMASK
from ..runtime.ops.unmask.contract import UnmaskCanvas, UnmaskSpec
from ..runtime.ops.unmask.device import CudaUnmask
from .gpu_drafts import DRAFT_BLOCK, DraftBench
from .gpu_model import eager_rule, half_module, half_spec
from .gpu_place import PEERS, Place, called_ms
from .report import print_table, record, write_json

SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"dim": 64, "layers": 2, "vocab": 258, "block": 8, "context": 16},
    "small": {"dim": 384, "layers": 6, "vocab": 8192, "block": 32, "context": 256},
    "large": {"dim": 768, "layers": 12, "vocab": 32000, "block": 32, "context": 512},
}
SCORE = {"rule": "tweedie", "steps": 2}
"""Settings of a transition: sigma, gain, offset, stay and slope stand in its table."""
COPY_BYTES = 256 << 20
"""Input from which on bandwidth is compared."""

Times = dict[str, list[float]]


class Bench:
    """One size on one GPU."""

    def __init__(self, size: Mapping[str, int], place: Place) -> None:
        """Makes module, engine, ops and a canvas."""
        self.size, self.place, self.device = size, place, place.device
        module = half_module(size, place.kind)
        self.engine = place.engine(module, half_spec(size, module))
        self.ops = CudaOps(self.device)
        unmask, transition = self.ops.bind(UNMASK), self.ops.bind(TRANSITION)
        assert isinstance(unmask, CudaUnmask)
        assert isinstance(transition, CudaTransition)
        self.unmask, self.transition = unmask, transition
        self.canvas = self._masked(size["block"])
        self.logits = self.engine.outputs["logits"]
        self.drafts = DraftBench(size, place, self.ops)
        self.times: Times = {}

    def _spec(self, block: int, chosen: Any) -> dict[str, Any]:
        """What both kinds of canvases are made with."""
        return {
            "block": block, "vocab_size": self.size["vocab"], "sampling": chosen.sampling,
            "seed": 0, "sample_index": 0, "mask_token_id": 1, "end_ids": (0,), "banned": (1,),
        }  # fmt: skip

    def _masked(self, block: int, **settings: Any) -> UnmaskCanvas:
        """Gives a canvas that is masked throughout."""
        chosen = read_rule({"rule": "threshold", "temperature": 1.0, **settings})
        assert chosen.selection is not None
        spec = UnmaskSpec(**self._spec(block, chosen), selection=chosen.selection)
        canvas = self.unmask.canvas(spec)
        ids, masked = np.full(block, 1, np.int32), np.ones(block, bool)
        self.unmask.begin_block(canvas, ids, masked, position=0, first=0)
        return canvas

    def _sampling(
        self, source: Any, rows: int, steps: list[list[float]] | None, settings: dict[str, Any]
    ) -> Callable[[], None]:
        """Gives what draws candidates for every row, unmasked or moved by a table of steps."""
        if steps is None:
            canvas = self._masked(rows, **settings)
            return lambda: self.unmask.sample(source, canvas)
        spec = TransitionSpec(**self._spec(rows, read_rule(settings)), transition=np.array(steps))
        moving = self.transition.canvas(spec)
        ids, free = np.full(rows, 1, np.int32), np.ones(rows, bool)
        self.transition.begin_block(moving, ids, free, position=0, first=0)
        return lambda: self.transition.sample(source, moving)

    def note(self, name: str, milliseconds: float) -> None:
        """Keeps one round's figure."""
        self.times.setdefault(name, []).append(milliseconds)

    def update(self, canvas: UnmaskCanvas) -> None:
        """Begin, sample and commit of a whole masked block: what a first step's update does."""
        self.unmask.launch_begin(canvas)
        self.unmask.sample(self.logits, canvas)
        self.unmask.launch_commit(canvas)

    def step(self) -> None:
        """Everything a step enqueues."""
        self.unmask.launch_begin(self.canvas)
        self.ops.assign(self.engine.inputs["ids"], self.canvas.ids)
        self.engine.run()
        self.unmask.sample(self.logits, self.canvas)
        self.unmask.launch_commit(self.canvas)

    def round(self) -> None:
        """Takes every figure once."""
        self.note("engine", self.place.captured_ms(self.engine.run))
        self.note("begin", self.place.captured_ms(lambda: self.unmask.launch_begin(self.canvas)))
        self.note("update", self.place.captured_ms(lambda: self.update(self.canvas)))
        self.note("step captured", self.place.captured_ms(self.step))

        def flushed() -> None:
            self.step()
            self.device.flush()

        flushed()
        self.note("step uncaptured", called_ms(flushed, self.device.synchronize))
        one = self.device.capture(self.step)
        self.note("step replayed alone", called_ms(one.replay, self.device.synchronize))
        for name, took in (self.peers() | self.drafts.step()).items():
            self.note(name, took)

    def peers(self) -> dict[str, float]:
        """Times the same rule in PyTorch on logits of the same shape."""
        block, vocab, kind = self.size["block"], self.size["vocab"], self.place.kind
        logits = torch.randn(block, vocab, device=kind, dtype=torch.float16)
        ids = torch.ones(block, device=kind, dtype=torch.int64)
        masked = torch.ones(block, device=kind, dtype=torch.bool)
        return self.place.peers_ms("rule", eager_rule, logits, ids, masked, 0.9)

    def bandwidth(self) -> list[dict[str, Any]]:
        """Each kernel's time over a device copy of its input, small and large."""
        found = []
        for what, rows in (
            ("step", self.size["block"]),
            ("256 MiB", min(MAX_BLOCK, COPY_BYTES // (2 * self.size["vocab"]))),
        ):
            shape = (1, rows, self.size["vocab"])
            source, target = (self.device.empty(shape, np.float16) for _ in range(2))
            values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
            self.device.upload(source, values)
            repeats = None if what == "step" else 3
            copy = self.place.captured_ms(lambda: self.device.copy(target, source), repeats)  # noqa: B023
            for name, settings, transition in (
                ("sample, greedy", {"temperature": 0.0}, None),
                ("sample, drawn", {}, None),
                ("sample, top-p", {"top_p": 0.9}, None),
                ("sample, top-k and top-p", {"top_k": 50, "top_p": 0.9}, None),
                ("transit, no offset", SCORE, [[1.0, 0.1, 0.0, 1.0, 0.0]] * 2),
                ("transit, offset", SCORE, [[1.0, 0.1, 1e-6, 1.0, 0.0]] * 2),
            ):
                sampling = self._sampling(source, rows, transition, settings)
                took = self.place.captured_ms(sampling, repeats)
                found.append(
                    {"input": what, "kernel": name, "mib": source.nbytes / 2**20,
                     "ms": took, "copy_ms": copy, "ratio": took / copy}
                )  # fmt: skip
            took = self.place.captured_ms(lambda: self.ops.append_kv(target, source, 0, 1), repeats)  # noqa: B023
            found.append(
                {"input": what, "kernel": "append_rows", "mib": source.nbytes / 2**20,
                 "ms": took, "copy_ms": copy, "ratio": took / copy}
            )  # fmt: skip
            found += self.drafts.bandwidth(what, DRAFT_BLOCK if what == "step" else rows)
        return found


def summary(times: Times) -> dict[str, float]:
    """Gives medians and the ratios that have goals."""
    found = {name: median(values) for name, values in times.items()}
    update = found["update"] - found["begin"]
    found["update without begin"] = update
    found["overhead share of the engine"] = (
        found["step captured"] - found["begin"] - found["engine"]
    ) / found["engine"]
    found["overhead share, host included"] = (
        found["step replayed alone"] - found["begin"] - found["engine"]
    ) / found["engine"]
    found["uncaptured over captured"] = found["step uncaptured"] / found["step replayed alone"]
    drafts = found["drafts: update"] - found["drafts: begin"]
    found["drafts: update without begin"] = drafts
    found["drafts: overhead share of the engine"] = drafts / found["drafts: engine"]
    for rule, ours in (("rule", update), ("draft rule", drafts)):
        for peer in PEERS:
            found[f"{peer.format(rule)} over ours"] = found[peer.format(rule)] / ours
    return found


@click.command("gpu-step", cls=DlmCommand)
@click.option("--size", type=click.Choice(list(SIZES)), default="large")
@click.option("--rounds", default=5, help="Figures are medians over these.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON of all figures.")
def main(size: str, rounds: int, output: Path | None) -> None:
    """Times one step on the first GPU."""
    bench = Bench(SIZES[size], Place.open())
    for _ in range(rounds):
        bench.round()
    figures, bandwidth = summary(bench.times), bench.bandwidth()
    gpu = read_gpu()
    print_table(
        [("figure", "name"), ("median", "value")],
        [{"name": name, "value": value} for name, value in figures.items()],
    )
    print_table(
        [("input", "input"), ("kernel", "kernel"), ("ms", "ms"), ("copy ms", "copy_ms"),
         ("ratio", "ratio")],
        bandwidth,
    )  # fmt: skip
    if output is not None:
        facts = {"gpu": gpu.name, "driver": gpu.driver_version, "sm": gpu.compute_capability}
        report = {
            **record(),
            **facts,
            "size": {"name": size, **SIZES[size]},
            "figures": figures,
            "rounds": bench.times,
            "bandwidth": bandwidth,
        }
        write_json(output, report)


if __name__ == "__main__":
    main()
