"""An engine set that records the inputs of its runs: a bounded sample, the same for a seed.

It wraps any backend, and update rules and bounds use it as they would use that. It reads the roles
of a graph's inputs (canvas, start, caches) and knows no family. A reservoir chooses what is kept;
canvases of one text share its cache, which grows row by row.

Then it finds the positions of a run that are about to be committed, from what the next run sees.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphSpec
from ...runtime.engines.base import Engine, EngineSet
from ...runtime.errors import CalibrationError
from .canvases import LATE_WEIGHT, Inputs, RecordedRun, Stratum


class Reservoir:
    """A bounded sample of canvases: so many per stratum and source, each with an equal chance.

    Vitter's algorithm R per stratum; arrays that several canvases share count once against the
    bound on bytes, at which fewer are kept of every stratum. Equal seeds and offers give equal
    samples.
    """

    def __init__(self, *, per_stratum: int, max_bytes: int | None, seed: int) -> None:
        self.per_stratum = per_stratum
        """Kept of each stratum and source at most; fewer once `max_bytes` is reached."""
        self._max_bytes = max_bytes
        self._seed = seed
        self._kept: dict[tuple[str, Stratum], list[RecordedRun]] = {}
        self._draws: dict[tuple[str, Stratum], tuple[np.random.Generator, int]] = {}
        self._owners: dict[int, tuple[int, int]] = {}
        self.num_bytes = 0
        """Of all arrays held."""

    def offer(self, canvas: RecordedRun) -> None:
        """Keeps a canvas with the chance that makes every one of its stratum equally likely.

        Raises:
            CalibrationError: Not even one canvas of each kind fits.
        """
        key = (canvas.source, canvas.stratum)
        kept = self._kept.setdefault(key, [])
        name = zlib.crc32(repr(key).encode())
        rng, seen = self._draws.get(key) or (np.random.default_rng((self._seed, name)), 0)
        self._draws[key] = (rng, seen + 1)
        if len(kept) < self.per_stratum:
            kept.append(canvas)
        else:
            # A sample that now keeps fewer per stratum stays even.
            place = int(rng.integers(seen + 1))
            if place >= self.per_stratum:
                return
            self._count(kept[place], -1)
            kept[place] = canvas
        self._count(canvas, 1)
        while self._max_bytes is not None and self.num_bytes > self._max_bytes:
            self._sink()

    def __iter__(self) -> Iterator[RecordedRun]:
        return (item for key in sorted(self._kept) for item in self._kept[key])

    def _sink(self) -> None:
        """Drops one canvas of every stratum."""
        assert self._max_bytes is not None
        if self.per_stratum == 1:
            raise CalibrationError(
                f"one canvas of each kind takes more than the {self._max_bytes >> 20} MiB allowed: "
                "allow more, or export fewer block and context sizes"
            )
        self.per_stratum -= 1
        for kept in self._kept.values():
            while len(kept) > self.per_stratum:
                # Places were drawn evenly, so the last one can be dropped as well as any.
                self._count(kept.pop(), -1)

    def _count(self, canvas: RecordedRun, change: int) -> None:
        """Adds or takes away the arrays of one canvas; whole owners count, not views of them."""
        for array in canvas.inputs.arrays.values():
            owner = array if array.base is None else array.base
            users, size = self._owners.get(id(owner), (0, array.nbytes))
            if isinstance(owner, np.ndarray):
                size = owner.nbytes
            if users == 0:
                self.num_bytes += size
            if users + change == 0:
                self.num_bytes -= size
                del self._owners[id(owner)]
            else:
                self._owners[id(owner)] = (users + change, size)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run, until the next one at the same place is known."""

    spec: GraphSpec
    inputs: Inputs
    canvas: np.ndarray
    start: int
    """Position of the canvas's first token."""
    begins: bool
    """Whether it stores a finished block and is the first step of the next one."""
    level: float | None
    """Chance that a token was replaced by noise; None where masks show all noise."""


class UnsoundOutputError(CalibrationError):
    """A floating-point graph gave NaN or infinity, on `canvas`."""

    def __init__(self, canvas: RecordedRun) -> None:
        super().__init__(
            f"graph {canvas.spec.name} gives NaN or infinity: the checkpoint's weights are too "
            "large or its training diverged; take an earlier checkpoint"
        )
        self.canvas = canvas


class Recorder:
    """Samples the runs of an engine set. Set `source` before each decode, call `flush` after it."""

    def __init__(
        self,
        mask_token_id: int | None,
        *,
        per_stratum: int,
        seed: int,
        max_bytes: int | None = None,
        noise_level: Callable[[Mapping[str, np.ndarray]], float | None] = lambda inputs: None,
    ) -> None:
        """Begins with nothing; `noise_level` is the family's (see `DeviceFamily`)."""
        self._noise_level = noise_level
        self._mask = mask_token_id
        self._kept = Reservoir(per_stratum=per_stratum, max_bytes=max_bytes, seed=seed)
        self._pending: list[_Run] = []
        self._place: tuple[Any, ...] = ()
        self._other: RecordedRun | None = None
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
            if tensor.cache:
                # Rows behind the start are an older text's, and nothing reads them.
                rows[tensor.name] = len(inputs[tensor.name])
                copies[tensor.name] = self._cache(tensor.name, inputs[tensor.name], start)
                continue
            array = np.array(inputs[tensor.name])
            if tensor.role == "canvas":
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
            level=self._noise_level(given),
        )
        if moved:
            self.flush(run)
            self._place = place
        self._pending.append(run)

    def _see_rows(self, spec: GraphSpec, inputs: Mapping[str, np.ndarray]) -> None:
        """Takes a copy of the inputs of a graph without a canvas, such as a head."""
        every = np.ones(spec.rows, bool)
        self._other = RecordedRun(
            spec=spec,
            inputs=Inputs({t.name: np.array(inputs[t.name]) for t in spec.inputs}),
            mask_ratio=0.0,
            progress=1.0,
            committing=every,
            weight=1.0,
            source=self.source,
        )
        self._kept.offer(self._other)

    def flush(self, next_run: _Run | None = None) -> None:
        """Ends a place, whose runs follow each other; `next_run` comes behind the last of them."""
        masks = [self._masked(run) for run in self._pending]
        steps = sum(bool(masked.any()) for masked in masks) or len(masks)
        # Noise that replaces tokens by others cannot be seen in a token: only an input says it.
        replaced = not any(masked.any() for masked in masks)
        for number, (run, masked) in enumerate(zip(self._pending, masks, strict=True)):
            after = self._pending[number + 1] if number + 1 < len(self._pending) else next_run
            # A commit run follows the last step and is not a step itself.
            progress = min(number / (steps - 1), 1.0) if steps > 1 else float(not run.begins)
            self._kept.offer(self._canvas(run, masked, after, progress, replaced=replaced))
        self._pending.clear()
        self._place = ()

    def canvases(self) -> tuple[RecordedRun, ...]:
        """What was kept, in a stable order."""
        self.flush()
        return tuple(self._kept)

    def last(self) -> RecordedRun:
        """Returns the run that was seen last as a canvas, kept or not."""
        if self._other is not None and not self._pending:
            return self._other
        run = self._pending[-1]
        return self._canvas(run, self._masked(run), None, 0.0)

    def _cache(self, key: str, given: np.ndarray, rows: int) -> np.ndarray:
        """Returns the first rows of a cache; those that a text had before are not copied again."""
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
        """Writes the text's ids over a canvas (batch, rows, …) of ids, in place.

        Noise need not be a mask, so all positions of the text are written. A canvas of floats
        holds no ids and stays as it is.
        """
        if self.clean is None or not np.issubdtype(array.dtype, np.integer):
            return
        text = self.clean[start : start + array.shape[1]]
        by_row = np.moveaxis(array, 1, -1)
        np.copyto(by_row, np.resize(text, array.shape[1]), where=by_row == self._mask)
        by_row[..., : len(text)] = text

    def _masked(self, run: _Run) -> np.ndarray:
        """Returns (rows,) bool; nothing is masked on a canvas of floats."""
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
    ) -> RecordedRun:
        noise = float(masked.mean())
        if replaced and run.level and self.source in ("decode", "random"):
            noise, masked = run.level, np.ones_like(masked)
        if self.source != "decode":
            # Independent draws do not follow each other; what they mask is what training scores.
            committing, progress = masked, 1.0 - noise
        else:
            committing = changed_rows(run, after, masked)
        return RecordedRun(
            spec=run.spec,
            inputs=run.inputs,
            mask_ratio=noise,
            progress=progress,
            committing=committing,
            weight=1.0 + LATE_WEIGHT * progress,
            source=self.source,
            rest=0.0 if drafts(run.spec) and masked.any() and committing.any() else 1.0,
        )


def changed_rows(run: _Run, after: _Run | None, masked: np.ndarray) -> np.ndarray:
    """Returns (rows,) bool: the positions that the next run sees changed.

    If it does not see the masked ones any more, the block is finished: all were committed. Of
    drafts and proposals these are the ones that `kept_rows` finds.
    """
    committing = np.zeros(run.spec.rows, bool)
    if drafts(run.spec) and masked.any() and after is not None:
        visible = run.inputs[run.spec.tensor("visible").name]
        return kept_rows(visible[0], masked, after.start - run.start)
    if after is None or after.spec.name != run.spec.name:
        return masked
    first = max(run.start, after.start)
    last = min(run.start + run.spec.rows, after.start + after.spec.rows)
    seen = slice(first - run.start, max(first, last) - run.start)
    if masked.any() and not masked[seen].any():
        return masked
    old = by_position(run.canvas, run.spec.rows)[seen]
    new = by_position(after.canvas, after.spec.rows)[first - after.start :][: len(old)]
    committing[seen] = (old != new).any(axis=1)
    return committing


def drafts(spec: GraphSpec) -> bool:
    """Returns whether a graph drafts: an input says which rows a row sees."""
    return any(tensor.role == "visible" for tensor in spec.inputs)


def kept_rows(visible: np.ndarray, masked: np.ndarray, count: int) -> np.ndarray:
    """Returns (rows,) bool: the rows that a draft-and-verify run's next tokens come from.

    Args:
        visible: (rows, rows): nonzero where a row sees another.
        masked: (rows,) bool.
        count: Drafts that were kept.

    Returns:
        The kept drafts, and the masks of the proposal that sees just these.
    """
    seen_drafts = (visible[:, ~masked] > 0).sum(axis=1)
    return np.where(masked, seen_drafts == count, np.cumsum(~masked) <= count)


def by_position(canvas: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns (num_rows, …) of a canvas (batch, rows, …): all that it holds at each position.

    Canvases of another length (drafts with their proposals) are cut or cycled.
    """
    rows = np.moveaxis(canvas, 1, 0).reshape(canvas.shape[1], -1)
    return rows if len(rows) == num_rows else np.resize(rows, (num_rows, rows.shape[1]))


class _RecordingEngine:
    """One engine whose runs are seen."""

    def __init__(self, engine: Engine, owner: RecordingEngines) -> None:
        self._engine, self._owner = engine, owner
        self.spec, self.inputs, self.outputs = engine.spec, engine.inputs, engine.outputs

    def run(self) -> None:
        """Records the inputs, runs, and raises UnsoundOutputError if NaN or infinity came out."""
        recorder = self._owner.recorder
        recorder.see(self.spec, self.inputs)
        self._engine.run()
        for tensor in self.spec.outputs:
            # A score of -inf is what an impossible token has; NaN is below nothing.
            if not (self.outputs[tensor.name] < np.inf).all():
                raise UnsoundOutputError(recorder.last())


class RecordingEngines:
    """An engine set that gives every run to a recorder."""

    def __init__(self, engines: EngineSet, recorder: Recorder) -> None:
        self._engines, self.recorder = engines, recorder
        self.name, self.reason, self.threads = engines.name, engines.reason, engines.threads
        self.device, self.specs = engines.device, engines.specs

    def engine(self, spec: GraphSpec) -> Engine:
        return _RecordingEngine(self._engines.engine(spec), self)

    def close(self) -> None:
        """Leaves the wrapped set open: its owner closes it."""
