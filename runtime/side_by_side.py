"""Texts decoded side by side: one run of a graph serves them all, a slot of its batch each.

Every text has an update rule of its own, which sees its slot as an engine set: the graphs with this
batch, and views of the slot's part of their buffers. So no family knows of batches, and a text is
the same alone and beside any others. Texts whose next runs have the same graph and rows go
together, at the longest context among them; the others wait for a later run. A graph that takes no
canvas goes on with what the one before it left in its outputs, so it goes first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .bundle.manifest import GraphKey, GraphSpec, TensorSpec
from .engines.base import Engine, EngineSet
from .families.base import LoadedModel, Request, Span
from .families.window import choose_block, default_block
from .generate import Generation
from .ops.core import Ops

TIMED_RUNS = 3


def batches(specs: Sequence[GraphSpec]) -> tuple[int, ...]:
    """Gives the batch sizes above 1 at which every shape of one text is on offer, ascending."""
    sizes = {spec.batch for spec in specs} - {1}
    alone = {spec.key for spec in specs if spec.batch == 1}
    return tuple(
        size
        for size in sorted(sizes)
        if alone and alone <= {for_batch(spec, 1).key for spec in specs if spec.batch == size}
    )


def for_batch(spec: GraphSpec, batch: int) -> GraphSpec:
    """Gives the shape that serves so many texts with the same rows and context."""

    def sized(tensor: TensorSpec) -> TensorSpec:
        axis = tensor.batch_axis
        return replace(tensor, shape=(*tensor.shape[:axis], batch, *tensor.shape[axis + 1 :]))

    return replace(
        spec,
        dims={**spec.dims, "batch": batch},
        inputs=tuple(map(sized, spec.inputs)),
        outputs=tuple(map(sized, spec.outputs)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTimes:
    """How long a run takes for a batch of texts, and for one at the same rows and context."""

    batch: int
    """Texts."""
    together: float
    """Seconds of a run for all of them."""
    alone: float
    """Seconds of a run for one."""

    def gain(self, count: int) -> float:
        """Gives how many times as fast so many texts are written together as one by one."""
        return count * self.alone / self.together

    def __str__(self) -> str:
        return (
            f"a run for {self.batch} texts takes {1e3 * self.together:.2f} ms, for one "
            f"{1e3 * self.alone:.2f} ms: together they are {self.gain(self.batch):.2f} times as "
            "fast"
        )


def time_batch(model: LoadedModel, batch: int) -> BatchTimes:
    """Times the shape that most runs of a text take, for so many texts and for one.

    Inputs are what the buffers hold; no cache changes. Takes the best of TIMED_RUNS each, in turn.
    """
    alone = usual_shape(model)
    engines = [model.engines.engine(spec) for spec in (for_batch(alone, batch), alone)]
    best = [float("inf")] * 2
    for turn in range(1 + TIMED_RUNS):
        for index, engine in enumerate(engines):
            begin = time.perf_counter()
            engine.run()
            model.ops.to_host(engine.outputs[engine.spec.result.name])  # waits, where runs enqueue
            if turn:  # the first run makes ready
                best[index] = min(best[index], time.perf_counter() - begin)
    return BatchTimes(batch=batch, together=best[0], alone=best[1])


def usual_shape(model: LoadedModel) -> GraphSpec:
    """Gives the shape of one text that most runs over a canvas take, at the default block size."""
    manifest = model.manifest
    specs = [spec for spec in model.specs if spec.batch == 1]
    blocks = model.family.blocks(manifest, specs)
    block = None
    if blocks:
        block = choose_block(blocks, default_block(manifest), manifest.block_sizes)
    counts: dict[GraphKey, float] = {}
    for spec, count in model.family.runs(
        manifest, specs, block=block, positions=manifest.max_position, tokens_per_run=1.0
    ):
        if any(tensor.role == "canvas" for tensor in spec.inputs):
            counts[spec.key] = counts.get(spec.key, 0.0) + count
    return max(specs, key=lambda spec: counts.get(spec.key, 0.0))


class SlotEngine(Engine):
    """One slot of an engine's batch."""

    def __init__(self, inner: Engine, slot: int, ops: Ops) -> None:
        self._inner, self._spec = inner, for_batch(inner.spec, 1)
        self._inputs, self._outputs = (
            {
                tensor.name: ops.slot(buffers[tensor.name], slot, axis=tensor.batch_axis)
                for tensor in tensors
            }
            for tensors, buffers in (
                (inner.spec.inputs, inner.inputs),
                (inner.spec.outputs, inner.outputs),
            )
        )

    @property
    def spec(self) -> GraphSpec:
        return self._spec

    @property
    def inputs(self) -> Mapping[str, Any]:
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, Any]:
        return self._outputs

    def run(self) -> None:
        """Runs the whole batch."""
        self._inner.run()


class SlotEngines(EngineSet):
    """One slot of every engine with a batch."""

    def __init__(self, inner: EngineSet, batch: int, slot: int, ops: Ops) -> None:
        self._inner, self._slot, self._ops = inner, slot, ops
        self._batched = {for_batch(s, 1).key: s for s in inner.specs if s.batch == batch}
        self._specs = tuple(for_batch(spec, 1) for spec in self._batched.values())
        self._engines: dict[GraphKey, tuple[Engine, SlotEngine]] = {}

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def reason(self) -> str:
        return self._inner.reason

    @property
    def threads(self) -> int:
        return self._inner.threads

    @property
    def device(self) -> Any:
        return self._inner.device

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        return self._specs

    def engine(self, spec: GraphSpec) -> Engine:
        inner = self._inner.engine(self._batched[spec.key])
        known = self._engines.get(spec.key)
        if known is None or known[0] is not inner:
            known = self._engines[spec.key] = (inner, SlotEngine(inner, self._slot, self._ops))
        return known[1]

    def close(self) -> None:
        """Does nothing: the batch's engines are others', too."""


class SideBySide:
    """Texts that share runs; each is iterated for its own spans, in any order.

    The slot of a text that has ended, or that its reader left, is free for another.
    """

    def __init__(self, model: LoadedModel, batch: int) -> None:
        """Takes as many texts at a time as the batch of the graphs has slots."""
        self.model = model
        self._slots = [SlotEngines(model.engines, batch, i, model.ops) for i in range(batch)]
        self._texts: dict[SlotEngines, SharedGeneration] = {}

    @property
    def num_free(self) -> int:
        """Slots without a text that wants runs."""
        return len(self._slots) - sum(text.waits for text in self._texts.values())

    def start(self, request: Request) -> SharedGeneration:
        """Starts a request in a free slot; raises ConfigError if it cannot be served."""
        assert self.num_free, "no slot is free"
        unused = (slot for slot in self._slots if slot not in self._texts)
        slot = next(unused, None) or next(s for s, text in self._texts.items() if not text.waits)
        text = SharedGeneration(self, slot, request)
        self._texts[slot] = text
        return text

    def step(self) -> None:
        """Makes one run for the texts that can share it, and lets them update."""
        clock = time.perf_counter
        begin = clock()
        together: dict[tuple[bool, str, int], list[SharedGeneration]] = {}
        for text in self._texts.values():
            if text.waits:
                run = text.next_run
                goes_on = all(tensor.role != "canvas" for tensor in run.inputs)
                together.setdefault((goes_on, run.name, run.rows), []).append(text)
        texts = max(together.items(), key=lambda group: (group[0][0], len(group[1])))[1]
        spec = max((text.next_run for text in texts), key=lambda run: run.context)
        engines = [text.slot_engine(spec) for text in texts]
        prepared = clock()
        for text in self._texts.values():
            if text not in texts:
                text.idle(spec)
        for text, engine in zip(texts, engines, strict=True):
            text.feed(engine)
        fed = clock()
        engines[0].run()
        ran = clock()
        with self.model.ops.together():
            for text, engine in zip(texts, engines, strict=True):
                text.update(engine)
        for text in texts:
            text.read()
        end = clock()
        for text in texts:
            text.note(prepared - begin, ran - fed, (end - ran) + (fed - prepared), len(texts))


class SharedGeneration(Generation):
    """A text of a `SideBySide`: reading on makes runs that serve the others, too."""

    def __init__(self, group: SideBySide, engines: SlotEngines, request: Request) -> None:
        own = replace(group.model, engines=engines)
        super().__init__(own, request)
        self._group, self._own = group, own
        self._ready: list[Span] = []
        self._left = False

    @property
    def done(self) -> bool:
        return self._rule.done and not self._ready

    def step(self) -> Sequence[Span]:
        """Returns what runs for others have changed already; else makes one that serves them."""
        if not self._ready:
            self._group.step()
        spans = tuple(self._ready)
        self._ready.clear()
        return spans

    def leave(self) -> None:
        self._left = True

    @property
    def waits(self) -> bool:
        """True as long as the text wants runs."""
        return not (self._left or self._rule.done)

    @property
    def next_run(self) -> GraphSpec:
        """The shape that the text wants to run next."""
        return self._rule.next_run()

    def slot_engine(self, spec: GraphSpec) -> Engine:
        """Gives the text's slot of a shape."""
        return self._own.engines.engine(spec)

    def idle(self, spec: GraphSpec) -> None:
        """Makes a run harmless that the text takes no part in: its rows are at the start."""
        engine = self._own.engines.engine(spec)
        for tensor in engine.spec.inputs:
            if tensor.role == "start":
                self._own.ops.assign(engine.inputs[tensor.name], np.zeros(tensor.shape, np.int32))

    def feed(self, engine: Engine) -> None:
        """Writes the text's inputs of a run."""
        self._rule.feed(engine)

    def update(self, engine: Engine) -> None:
        """Enqueues what follows a run."""
        self._rule.update(engine)

    def read(self) -> None:
        """Takes what the run made of the text."""
        self._ready.extend(self._rule.read())

    def note(self, prepare: float, engine: float, update: float, num_texts: int) -> None:
        """Counts a run and the text's share of its time."""
        self._nfe += 1
        stages = {"prepare": prepare, "engine": engine, "update": update}
        for stage, seconds in stages.items():
            self._seconds[stage] += seconds / num_texts
            self._total += seconds / num_texts
