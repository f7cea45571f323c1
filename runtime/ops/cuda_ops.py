"""The primitives as kernels on a device: the logits never leave it, and no step allocates.

Contracts stand in `base.Ops`; the kernels in `kernels/`. A step is two launches, `sample` and
`commit`, whose arguments never change, so that engine and sampling can be captured together. A
commit publishes its progress in a mapped word, which the host reads without a synchronisation.

With `run_ahead`, `commit` returns the progress of the step before, so that the device always has a
step to do, at the price of one step over a finished block. Where that could change tokens it waits
for its own step: under a rule that may commit nothing (the graph is then not run again), and where
one position is left to do (`next_token`).

Tokens equal those of `NumpyOps` but where a uniform lies on a boundary of the distribution function
to 1e-5, or two scores are equal to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..decoding import RULES, DecodingSettings
from ..device import Device, DeviceArray, Step, wait_until
from ..errors import ConfigError, EngineError
from .base import CHUNK, Canvas, Progress
from .cuda_state import (
    MAX_BLOCK,
    RING,
    SEQUENCE_MASK,
    STATE,
    Published,
    permitted_bits,
    settings_state,
    unpack,
)

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
COPY_BLOCKS = 64
"""Thread blocks of a cache append: enough to fill the memory system of a small GPU."""


@dataclass(slots=True, kw_only=True)
class _Scratch:
    """A device canvas's working memory, and where the host stands."""

    state: DeviceArray
    """(1,) STATE."""
    staged: np.ndarray
    """Mapped (2 + 2 block,) int32: what the next block begins with."""
    published: np.ndarray
    """Mapped (RING,) uint64."""
    owned: tuple[DeviceArray, ...]
    """Arrays that only the state points to."""
    grid: int
    """Rows."""
    row_threads: int
    block_threads: int
    launched: int = 0
    """Words that will have been published once all that is enqueued has run."""
    steps_in_block: int = 0


class CudaOps:
    """`Ops` on a `Device`."""

    name = "cuda"
    synchronous = False

    def __init__(self, device: Device, *, run_ahead: bool = True, kernels: Path = KERNELS) -> None:
        """Compiles the kernels, or finds them compiled; DeviceError if that fails."""
        self._device = device
        self._run_ahead = run_ahead
        self._kernels = {
            **device.kernels(kernels / "sample.cu", ("sample_float32", "sample_float16")),
            **device.kernels(kernels / "transition.cu", ("transit_float32", "transit_float16")),
            **device.kernels(kernels / "commit.cu", ("begin_block", "commit")),
            **device.kernels(kernels / "copy.cu", ("append_rows",)),
        }

    def canvas(
        self,
        *,
        block: int,
        vocab_size: int,
        settings: DecodingSettings,
        seed: int,
        sample_index: int,
        mask_token_id: int,
        eos_token_id: int,
        banned: tuple[int, ...],
        unmask_chance: np.ndarray | None = None,
        transition: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
    ) -> Canvas:
        """See Ops; ConfigError for a block that a progress word cannot count."""
        if block > MAX_BLOCK:
            raise ConfigError(f"a block has {MAX_BLOCK} positions at most on a GPU, not {block}")
        penalised = settings.repetition_penalty != 1.0
        canvas = Canvas(
            settings=settings,
            vocab_size=vocab_size,
            seed=seed,
            sample_index=sample_index,
            mask_token_id=mask_token_id,
            eos_token_id=eos_token_id,
            banned=banned,
            ids=self._filled(np.full((1, block), mask_token_id, np.int32)),
            masked=self._filled(np.zeros(block, np.uint8)),
            chosen=self._filled(np.zeros(block, np.uint8)),
            candidate=self._filled(np.zeros(block, np.int32)),
            score=self._filled(np.zeros(block, np.float32)),
            log_prob=self._filled(np.zeros(block, np.float32)),
            unmask_chance=self._optional(unmask_chance, np.float64),
            transition=self._optional(transition, np.float64),
            sigma=self._optional(None if transition is None else transition[0, :1], np.float32),
            bias=self._optional(bias, np.float32),
            allowed=self._filled(permitted_bits(vocab_size, banned, allowed)),
            seen=self._filled(np.zeros(vocab_size, np.uint8)) if penalised else None,
        )
        canvas.scratch = self._scratch(canvas, block)
        return canvas

    def _filled(self, values: np.ndarray) -> DeviceArray:
        array = self._device.empty(values.shape, values.dtype)
        self._device.upload(array, values)
        return array

    def _optional(self, values: np.ndarray | None, dtype: Any) -> DeviceArray | None:
        return None if values is None else self._filled(np.asarray(values, dtype))

    def _scratch(self, canvas: Canvas, block: int) -> _Scratch:
        """Allocates what a canvas does not show, and writes the state that kernels read."""
        chunks = -(-canvas.vocab_size // CHUNK)
        sums = self._device.empty((block, chunks), np.float32)
        rank = self._device.empty((block,), np.int32)
        staged, staged_pointer = self._device.mapped((2 + 2 * block,), np.int32)
        published, published_pointer = self._device.mapped((RING,), np.uint64)
        state = np.zeros(1, STATE)
        settings_state(state, canvas.settings, canvas.seed, canvas.sample_index)
        for name in ("ids", "masked", "chosen", "candidate", "score", "log_prob"):
            state[name] = getattr(canvas, name).pointer
        for name in ("unmask_chance", "transition", "sigma", "bias", "seen"):
            array = getattr(canvas, name)
            state[name] = 0 if array is None else array.pointer
        state["permitted"] = canvas.allowed.pointer
        state["permitted_stride"] = 2 * chunks if canvas.allowed.shape[0] > 1 else 0
        state["sums"], state["rank"] = sums.pointer, rank.pointer
        state["staged"], state["published"] = staged_pointer, published_pointer
        state["block"], state["vocab"], state["chunks"] = block, canvas.vocab_size, chunks
        state["num_chances"] = 0 if canvas.unmask_chance is None else canvas.unmask_chance.size
        state["num_steps"] = 0 if canvas.transition is None else canvas.transition.shape[0]
        state["mask_token_id"], state["eos_token_id"] = canvas.mask_token_id, canvas.eos_token_id
        return _Scratch(
            state=self._filled(state),
            staged=staged,
            published=published,
            owned=(sums, rank),
            grid=block,
            row_threads=32 * min(16, max(2, -(-canvas.vocab_size // 256))),
            block_threads=32 * min(16, -(-block // 32)),
        )

    def begin_block(
        self, canvas: Canvas, ids: np.ndarray, masked: np.ndarray, *, position: int, first: int
    ) -> int:
        """See Ops."""
        scratch: _Scratch = canvas.scratch
        self._published(scratch, scratch.launched)  # the block before has read what was staged
        block = scratch.grid
        scratch.staged[0], scratch.staged[1] = position, first
        scratch.staged[2 : 2 + block] = ids
        scratch.staged[2 + block :] = masked
        self._launch("begin_block", 1, scratch.block_threads, scratch.state.pointer)
        scratch.launched += 1
        scratch.steps_in_block = 0
        canvas.position, canvas.first, canvas.step = position, first, 0
        canvas.num_masked = canvas.num_masked_at_start = int(np.count_nonzero(masked))
        return canvas.num_masked

    def mark_seen(self, canvas: Canvas, ids: np.ndarray) -> None:
        """See Ops."""
        if canvas.seen is not None:
            seen = self._device.download(canvas.seen)
            seen[ids] = 1
            self._device.upload(canvas.seen, seen)

    def sample(self, logits: Any, canvas: Canvas) -> None:
        """See Ops; a row that cannot be sampled is reported by `commit`."""
        scratch: _Scratch = canvas.scratch
        rows = logits.size // canvas.vocab_size
        assert rows == scratch.grid, f"{rows} rows of logits for {scratch.grid} positions"
        kernel = "sample" if canvas.transition is None else "transit"
        kernel = f"{kernel}_{logits.dtype.name}"
        pointers = (logits.pointer, scratch.state.pointer)
        self._launch(kernel, scratch.grid, scratch.row_threads, *pointers)

    def commit(self, canvas: Canvas) -> Progress:
        """See Ops; EngineError for a row of logits without a finite highest value."""
        self._launch_commit(canvas)
        return self._progress(canvas)

    def capture_step(self, canvas: Canvas, logits: Any, run: Callable[[], None]) -> Step:
        """Captures a step, executing nothing: `run` (feed and engine), `sample`, `commit`."""

        def step() -> None:
            run()
            self.sample(logits, canvas)
            self._launch_commit(canvas)

        return self._device.capture(step)

    def replay_step(self, canvas: Canvas, step: Step) -> Progress:
        """Runs a captured step of this canvas; as `commit` otherwise."""
        step.replay()
        return self._progress(canvas)

    def _launch_commit(self, canvas: Canvas) -> None:
        scratch: _Scratch = canvas.scratch
        self._launch("commit", 1, scratch.block_threads, scratch.state.pointer)

    def _progress(self, canvas: Canvas) -> Progress:
        """Counts an enqueued commit, and gives its progress or that of the one before."""
        scratch: _Scratch = canvas.scratch
        scratch.launched += 1
        scratch.steps_in_block += 1
        canvas.step += 1 if canvas.num_masked else 0
        ahead = self._run_ahead and self._may_run_ahead(canvas)
        if ahead and scratch.steps_in_block == 1:
            return Progress(canvas.num_masked, 1, 0, False)  # nothing is known yet
        found = self._published(scratch, scratch.launched - int(ahead))
        if found.failed:
            raise EngineError(
                "a row of logits has no finite highest value among those allowed; the graph "
                "overflows: try another precision, or allow more tokens"
            )
        canvas.num_masked = found.progress.num_masked
        return found.progress

    def _may_run_ahead(self, canvas: Canvas) -> bool:
        if canvas.transition is not None:
            return canvas.step < canvas.transition.shape[0]  # never beyond the last step
        return canvas.num_masked_at_start > 1 and not RULES[canvas.settings.rule].scheduled

    def _published(self, scratch: _Scratch, sequence: int) -> Published:
        """Waits for the progress word of a sequence number."""
        if sequence == 0:
            return unpack(0)

        def ready() -> bool:
            return self._word(scratch, sequence).sequence == sequence & SEQUENCE_MASK

        wait_until(self._device, ready)
        return self._word(scratch, sequence)

    def _word(self, scratch: _Scratch, sequence: int) -> Published:
        return unpack(int(scratch.published[sequence % RING]))

    def _launch(self, kernel: str, grid: int, block: int, *arguments: int) -> None:
        self._device.launch(self._kernels[kernel], grid, block, arguments)

    def ids(self, canvas: Canvas) -> np.ndarray:
        """See Ops."""
        return self._device.download(canvas.ids)[0]

    def masked(self, canvas: Canvas) -> np.ndarray:
        """See Ops."""
        return self._device.download(canvas.masked).astype(bool)

    def assign(self, target: DeviceArray, source: Any) -> None:
        """See Ops."""
        if isinstance(source, DeviceArray):
            self._device.copy(target, source)
        else:
            self._device.upload(target, np.asarray(source))

    def rows(self, logits: DeviceArray, start: int, count: int) -> DeviceArray:
        """See Ops."""
        return logits.rows(start, count, axis=1)

    def append_kv(self, kv: DeviceArray, kv_new: DeviceArray, start: int, count: int) -> None:
        """See Ops."""
        target, source = kv.rows(start, count), kv_new.rows(0, count)
        pointers = (target.pointer, source.pointer, target.nbytes)
        self._launch("append_rows", COPY_BLOCKS, 256, *pointers)

    def to_host(self, array: DeviceArray) -> np.ndarray:
        """See Ops."""
        return self._device.download(array)
