"""The primitives as kernels on a device: the logits never leave it, and no step allocates.

Contracts stand in `base.Ops`; the kernels in `kernels/`. A step is two launches, `sample` and
`commit`, whose arguments never change, so that engine and sampling can be captured together. A
commit publishes its progress in a mapped word, and the ids of a finished block in mapped memory,
which the host reads without a synchronisation.

With `run_ahead`, `commit` returns the progress of the step before unless it is asked to be exact,
so that the device always has a step to do. The step that is then run over a finished block is not
lost: its outputs are those of the commit run (see `Progress`).

Tokens equal those of `NumpyOps` but where a uniform lies on a boundary of the distribution function
to 1e-5, or two scores are equal to rounding.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, EngineError
from ..gpu.device import Device, DeviceArray, wait_until
from .base import CHUNK, Canvas, Progress
from .cuda_canvas import CanvasMemory, CanvasPool, first_values, state_of
from .cuda_drafts import COPY_BLOCKS, CudaDrafts, DraftPool, load_draft_kernels
from .cuda_state import KERNELS, MAX_BLOCK, MAX_VOCAB, RING, SEQUENCE_MASK, Published, unpack
from .rows.contract import Sampling
from .unmask.contract import Selection


class CudaOps(CudaDrafts):
    """`Ops` on a `Device`."""

    name = "cuda"
    synchronous = False

    def __init__(self, device: Device, *, run_ahead: bool = True, kernels: Path = KERNELS) -> None:
        """Compiles the kernels, or finds them compiled; DeviceError if that fails."""
        self.device = device
        self._run_ahead = run_ahead
        self._pool, self._draft_pool = CanvasPool(device), DraftPool(device)
        self._kernels = {
            **device.kernels(kernels / "sample.cu", ("sample_float32", "sample_float16")),
            **device.kernels(kernels / "transition.cu", ("transit_float32", "transit_float16")),
            **device.kernels(kernels / "commit.cu", ("begin_block", "commit")),
            **device.kernels(kernels / "copy.cu", ("append_rows",)),
            **load_draft_kernels(device, kernels),
        }

    def canvas(
        self,
        *,
        block: int,
        vocab_size: int,
        sampling: Sampling,
        selection: Selection | None,
        seed: int,
        sample_index: int,
        mask_token_id: int,
        eos_token_id: int,
        banned: tuple[int, ...],
        unmask_chance: np.ndarray | None = None,
        transition: np.ndarray | None = None,
        tells: bool = False,
        times: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
    ) -> Canvas:
        """See Ops; ConfigError for a block or a vocabulary too large to be counted."""
        if block > MAX_BLOCK:
            raise ConfigError(f"a block has {MAX_BLOCK} positions at most on a GPU, not {block}")
        if vocab_size > MAX_VOCAB:
            raise ConfigError(
                f"a vocabulary has {MAX_VOCAB} ids at most on a GPU, not {vocab_size}; "
                "use --engine onnxruntime"
            )
        canvas = Canvas(
            sampling=sampling,
            selection=selection,
            vocab_size=vocab_size,
            seed=seed,
            sample_index=sample_index,
            mask_token_id=mask_token_id,
            eos_token_id=eos_token_id,
            banned=banned,
            ids=None,
            masked=None,
            chosen=None,
            candidate=None,
            score=None,
            log_prob=None,
            unmask_chance=unmask_chance,
            transition=transition,
            told=np.zeros(block, np.float32) if tells else None,
            times=times,
            bias=bias,
            allowed=allowed,
        )
        chunks = -(-vocab_size // CHUNK)
        memory = self._pool.lend(first_values(canvas, block), chunks)
        for name, array in memory.arrays.items():
            setattr(canvas, name, array)
        self.device.upload(memory.state, state_of(canvas, memory, chunks))
        canvas.scratch, memory.user = memory, weakref.ref(canvas)
        return canvas

    def begin_block(
        self, canvas: Canvas, ids: np.ndarray, masked: np.ndarray, *, position: int, first: int
    ) -> int:
        """See Ops."""
        scratch: CanvasMemory = canvas.scratch
        if scratch.begun > scratch.known:  # the block before has not been seen to read its values
            self._published(scratch, scratch.begun)
        block = scratch.grid
        scratch.staged[0], scratch.staged[1] = position, first
        scratch.staged[2 : 2 + block] = ids
        scratch.staged[2 + block :] = masked
        self.launch_begin(canvas)
        self.device.flush()
        scratch.launched += 1
        scratch.begun = scratch.launched
        scratch.steps_in_block = 0
        scratch.finished = False
        canvas.position, canvas.first, canvas.step = position, first, 0
        canvas.num_masked = canvas.num_masked_at_start = int(np.count_nonzero(masked))
        return canvas.num_masked

    def mark_seen(self, canvas: Canvas, ids: np.ndarray) -> None:
        """See Ops."""
        if canvas.seen is not None:
            seen = self.device.download(canvas.seen)
            seen[ids] = 1
            self.device.upload(canvas.seen, seen)

    def sample(self, logits: Any, canvas: Canvas) -> None:
        """See Ops; a row that cannot be sampled is reported by `commit`."""
        scratch: CanvasMemory = canvas.scratch
        rows = logits.size // canvas.vocab_size
        assert rows == scratch.grid, f"{rows} rows of logits for {scratch.grid} positions"
        kernel = "sample" if canvas.transition is None else "transit"
        kernel = f"{kernel}_{logits.dtype.name}"
        pointers = (logits.pointer, scratch.state.pointer)
        self._launch(kernel, scratch.grid, scratch.row_threads, *pointers)

    def commit(self, canvas: Canvas, *, exact: bool = False) -> Progress:
        """See Ops; EngineError for a row of logits without a finite highest value."""
        scratch: CanvasMemory = canvas.scratch
        self.launch_commit(canvas)
        self.device.flush(repeats=True)
        scratch.launched += 1
        scratch.steps_in_block += 1
        canvas.step += 1 if canvas.num_masked else 0
        behind = self._run_ahead and not exact
        if behind and scratch.steps_in_block == 1:
            return Progress(canvas.num_masked, 0, 0, False, behind)  # nothing is known yet
        found = self._published(scratch, scratch.launched - int(behind))
        if found.failed:
            raise EngineError(
                "a row of logits has no finite highest value among those allowed; the graph "
                "overflows: try another precision, or allow more tokens"
            )
        canvas.num_masked = found.progress.num_masked
        scratch.finished = canvas.num_masked == 0
        return found.progress._replace(behind=behind)

    def launch_begin(self, canvas: Canvas) -> None:
        """Enqueues a block's begin and counts nothing: for those who time it."""
        scratch: CanvasMemory = canvas.scratch
        self._launch("begin_block", 1, scratch.block_threads, scratch.state.pointer)

    def launch_commit(self, canvas: Canvas) -> None:
        """Enqueues a commit and counts nothing: for those who time it."""
        scratch: CanvasMemory = canvas.scratch
        self._launch("commit", 1, scratch.block_threads, scratch.state.pointer)

    def _published(self, scratch: CanvasMemory, sequence: int) -> Published:
        """Waits for the progress word of a sequence number."""

        def ready() -> bool:
            return self._word(scratch, sequence).sequence == sequence & SEQUENCE_MASK

        wait_until(self.device, ready)
        scratch.known = max(scratch.known, sequence)
        return self._word(scratch, sequence)

    def _word(self, scratch: CanvasMemory, sequence: int) -> Published:
        return unpack(int(scratch.published[sequence % RING]))

    def _launch(self, kernel: str, grid: int, block: int, *arguments: int) -> None:
        self.device.launch(self._kernels[kernel], grid, block, arguments)

    def ids(self, canvas: Canvas) -> np.ndarray:
        """See Ops; a finished block's cost no synchronisation."""
        scratch: CanvasMemory = canvas.scratch
        if scratch.finished:
            return scratch.shown.copy()
        return self.device.download(canvas.ids)[0]

    def masked(self, canvas: Canvas) -> np.ndarray:
        """See Ops."""
        return self.device.download(canvas.masked).astype(bool)

    def assign(self, target: DeviceArray, source: Any) -> None:
        """See Ops."""
        if isinstance(source, DeviceArray):
            self.device.copy(target, source)
        else:
            self.device.hold(target, np.asarray(source))

    def rows(self, logits: DeviceArray, start: int, count: int) -> DeviceArray:
        """See Ops."""
        return logits.rows(start, count, axis=1)

    def append_kv(self, kv: DeviceArray, kv_new: DeviceArray, start: int, count: int) -> None:
        """See Ops."""
        # What comes before, a run, will come again; this goes to another place each time.
        self.device.flush(repeats=True)
        target, source = kv.rows(start, count), kv_new.rows(0, count)
        pointers = (target.pointer, source.pointer, target.nbytes)
        self._launch("append_rows", COPY_BLOCKS, 256, *pointers)

    def to_host(self, array: DeviceArray) -> np.ndarray:
        """See Ops."""
        return self.device.download(array)
