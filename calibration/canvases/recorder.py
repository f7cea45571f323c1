"""An engine set that writes down what every run is given: a bounded sample, the same for a seed.

It wraps any backend; update rules and bounds cannot tell it from what it wraps. Goes by the roles
of a graph's inputs (canvas, start, kv) and knows no family. What is kept of it is a reservoir's
choice; canvases of one text share its cache, which grows row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphSpec
from ...runtime.engines.base import Engine, EngineSet
from ...runtime.errors import CalibrationError
from ...runtime.gpu.device import Device
from .canvases import LATE_WEIGHT, Canvas, Inputs
from .frontier import by_position, changed_rows, drafts
from .reservoir import Reservoir


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run, until it is known what the next one at the same place looks like."""

    spec: GraphSpec
    inputs: Inputs
    canvas: np.ndarray
    start: int
    """Position of the canvas's first token."""
    begins: bool
    """Whether it stores a finished block and is the first step of the next one."""
    level: float | None
    """Chance that a token was replaced by noise, where the graph is told how noisy its canvas is;
    None where it is not."""


class UnsoundOutputError(CalibrationError):
    """A floating-point graph gave NaN or infinity, on `canvas`."""

    def __init__(self, canvas: Canvas) -> None:
        super().__init__(
            f"graph {canvas.spec.name} gives NaN or infinity: the checkpoint's weights are too "
            "large or its training diverged; take an earlier checkpoint"
        )
        self.canvas = canvas


class Recorder:
    """Samples the runs of an engine set. Tell it the `source` before each decode, `flush` after."""

    def __init__(
        self,
        mask_token_id: int | None,
        *,
        per_stratum: int,
        seed: int,
        max_bytes: int | None = None,
    ) -> None:
        self._mask = mask_token_id
        self._kept = Reservoir(per_stratum=per_stratum, max_bytes=max_bytes, seed=seed)
        self._pending: list[_Run] = []
        self._place: tuple[Any, ...] = ()
        self._other: Canvas | None = None
        self._caches: dict[str, np.ndarray] = {}
        """The rows in use of each text's cache, as its last run had them."""
        self.source = "decode"
        """Written on what is recorded from now on."""
        self.clean: np.ndarray | None = None
        """(L,) the text that is being run: if given, its ids are recorded in place of masks."""
        self.num_seen = 0
        """Runs so far."""

    def see(self, spec: GraphSpec, inputs: Mapping[str, np.ndarray]) -> None:
        """Takes a copy of one run's inputs, sharing what has not changed since the last run."""
        self.num_seen += 1
        if not any(tensor.role == "canvas" for tensor in spec.inputs):
            self._see_rows(spec, inputs)
            return
        given = {tensor.role: inputs[tensor.name] for tensor in spec.inputs}
        start = int(np.max(given["start"])) if "start" in given else 0
        place = (*spec.key, start)
        moved = place != self._place
        last = self._pending[-1].inputs.arrays if self._pending and not moved else {}
        copies, rows = {}, {}
        for tensor in spec.inputs:
            if tensor.role == "kv":
                # What lies behind is an older text's, and nothing reads it.
                rows[tensor.name] = len(inputs[tensor.name])
                copies[tensor.name] = self._cache(tensor.name, inputs[tensor.name], start)
                continue
            array = np.array(inputs[tensor.name])
            if tensor.role == "canvas" and self.clean is not None:
                self._unmask(array, start)
            known = last.get(tensor.name)
            same = known is not None and np.array_equal(known, array)
            copies[tensor.name] = known if same else array
        run = _Run(
            spec=spec,
            inputs=Inputs(copies, rows),
            canvas=copies[spec.tensor("canvas").name],
            start=start,
            begins=bool(np.any(given.get("split", 0))),
            level=_level(given),
        )
        if moved:
            self.flush(run)
            self._place = place
        self._pending.append(run)

    def _see_rows(self, spec: GraphSpec, inputs: Mapping[str, np.ndarray]) -> None:
        """Takes a copy of what a graph reads that sees no canvas, such as a head: what stands on
        a canvas is told by the run before it, and each row counts."""
        every = np.ones(spec.rows, bool)
        self._other = Canvas(
            spec=spec,
            inputs=Inputs({t.name: np.array(inputs[t.name]) for t in spec.inputs}),
            mask_ratio=0.0,
            progress=1.0,
            frontier=every,
            weight=1.0,
            source=self.source,
        )
        self._kept.offer(self._other)

    def flush(self, next_run: _Run | None = None) -> None:
        """Ends a place, whose runs follow each other; `next_run` comes behind the last of them."""
        masks = [self._masked(run) for run in self._pending]
        steps = sum(bool(masked.any()) for masked in masks) or len(masks)
        # Noise that replaces tokens by others shows in no token: what the graph is told counts.
        replaced = not any(masked.any() for masked in masks)
        for number, (run, masked) in enumerate(zip(self._pending, masks, strict=True)):
            after = self._pending[number + 1] if number + 1 < len(self._pending) else next_run
            # A commit run comes behind the last step: it is no step of its own.
            progress = min(number / (steps - 1), 1.0) if steps > 1 else float(not run.begins)
            self._kept.offer(self._canvas(run, masked, after, progress, replaced=replaced))
        self._pending.clear()
        self._place = ()

    def canvases(self) -> tuple[Canvas, ...]:
        """What was kept, in a stable order."""
        self.flush()
        return tuple(self._kept)

    def last(self) -> Canvas:
        """Gives the run that was seen last as a canvas, whatever becomes of it."""
        if self._other is not None and not self._pending:
            return self._other
        run = self._pending[-1]
        return self._canvas(run, self._masked(run), None, 0.0)

    def _cache(self, key: str, given: np.ndarray, rows: int) -> np.ndarray:
        """Gives the first rows of a cache; what a text had before is shared, not copied again."""
        known = self._caches[key] if key in self._caches else given[:0].copy()
        count = len(known)
        owner: np.ndarray = known if known.base is None else known.base
        if count > rows or len(owner) < rows or not np.array_equal(given[:count], known):
            # Another text, or one that has outgrown its place.
            count, owner = 0, np.empty_like(given)
        owner[count:rows] = given[count:rows]
        self._caches[key] = owner[:rows]
        return self._caches[key]

    def _unmask(self, array: np.ndarray, start: int) -> None:
        """Writes the text's ids over a canvas, in place; noise need not be a mask."""
        assert self.clean is not None
        text = self.clean[start : start + array.shape[1]]
        np.copyto(array, np.resize(text, array.shape), where=array == self._mask)
        array[:, : len(text)] = text

    def _masked(self, run: _Run) -> np.ndarray:
        """Gives (rows,) bool; nothing is masked on a canvas of floats."""
        if self._mask is None or not np.issubdtype(run.canvas.dtype, np.integer):
            return np.zeros(run.spec.rows, bool)
        return (by_position(run.canvas, run.spec.rows) == self._mask).any(axis=1)

    def _canvas(
        self,
        run: _Run,
        masked: np.ndarray,
        after: _Run | None,
        progress: float,
        *,
        replaced: bool = False,
    ) -> Canvas:
        noise = float(masked.mean())
        if replaced and run.level is not None and self.source in ("decode", "random"):
            noise, masked = run.level, np.ones_like(masked)
        if self.source != "decode":
            # Independent draws do not follow each other; what they mask is what training scores.
            frontier, progress = masked, 1.0 - noise
        else:
            frontier = changed_rows(run, after, masked)
        return Canvas(
            spec=run.spec,
            inputs=run.inputs,
            mask_ratio=noise,
            progress=progress,
            frontier=frontier,
            weight=1.0 + LATE_WEIGHT * progress,
            source=self.source,
            rest=0.0 if drafts(run.spec) and masked.any() and frontier.any() else 1.0,
        )


def _level(given: Mapping[str, np.ndarray]) -> float | None:
    """Gives the noise level in [0, 1] that a graph is told, by the role it is told in."""
    if "sigma" in given:
        return float(-np.expm1(-np.max(given["sigma"])))
    return None


class _RecordingEngine:
    """One engine whose runs are seen."""

    def __init__(self, engine: Engine, owner: RecordingEngines) -> None:
        self._engine, self._owner = engine, owner

    @property
    def spec(self) -> GraphSpec:
        """See Engine."""
        return self._engine.spec

    @property
    def inputs(self) -> Mapping[str, Any]:
        """See Engine."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, Any]:
        """See Engine."""
        return self._engine.outputs

    def run(self) -> None:
        """See Engine; the inputs are taken first, and the outputs looked at.

        Raises:
            UnsoundOutputError: NaN or infinity came out.
        """
        recorder = self._owner.recorder
        recorder.see(self.spec, self.inputs)
        self._engine.run()
        for tensor in self.spec.outputs:
            # A score of -inf is what an impossible token has; NaN is below nothing.
            if not (self.outputs[tensor.name] < np.inf).all():
                raise UnsoundOutputError(recorder.last())


class RecordingEngines:
    """An engine set that hands every run to a recorder; `close` is the wrapped set's owner's."""

    def __init__(self, engines: EngineSet, recorder: Recorder) -> None:
        self._engines = engines
        self.recorder = recorder

    @property
    def name(self) -> str:
        """See EngineSet."""
        return self._engines.name

    @property
    def reason(self) -> str:
        """See EngineSet."""
        return self._engines.reason

    @property
    def threads(self) -> int:
        """See EngineSet."""
        return self._engines.threads

    @property
    def device(self) -> Device | None:
        """See EngineSet; None, since canvases are taken from arrays in host memory."""
        return self._engines.device

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """See EngineSet."""
        return self._engines.specs

    def engine(self, spec: GraphSpec) -> Engine:
        """See EngineSet."""
        return _RecordingEngine(self._engines.engine(spec), self)

    def close(self) -> None:
        """Leaves the wrapped set open: whoever opened it closes it."""
