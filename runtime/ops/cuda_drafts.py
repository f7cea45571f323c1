"""Drafting and verifying as kernels on a device.

Contracts stand in `drafts.DraftOps`, the kernels in `kernels/draft.cu`. A step is four launches
whose arguments never change, so that run and step are captured together; how many drafts were kept,
and so which proposal is read and how many cache rows are written, is known on the device first. The
host waits once per step, for a word in mapped memory beside the ids that became certain.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, EngineError
from ..gpu.device import Device, DeviceArray
from .base import CHUNK, Canvas
from .cuda_canvas import CanvasMemory
from .cuda_state import KERNELS, Published, read_struct
from .drafts import MAX_STOPS, Drafts, Verified
from .rows.contract import Sampling

COPY_BLOCKS = 64
"""Thread blocks of a cache append: enough to fill the memory system of a small GPU."""
DRAFT_KERNELS = (
    "begin_drafts", "settle", "append_kept",
    "verify_float32", "verify_float16", "verify_mixed_float32", "verify_mixed_float16",
    "propose_float32", "propose_float16",
)  # fmt: skip
DRAFT_STATE = read_struct(KERNELS / "drafts.cuh", "Drafts")
WEIGHT_BYTES = 32
"""Kept per draft of how its logits became weights."""
_GROUP = 4 * CHUNK
"""Weights that are summed together, so that rows of logits are as long as whole groups."""


@dataclass(slots=True, kw_only=True)
class DraftMemory:
    """A text's device memory, beside its canvas's."""

    state: DeviceArray
    """(1,) DRAFT_STATE."""
    arrays: Mapping[str, DeviceArray | None]
    """`ids`, `start` and `held` of `Drafts`, and what only the state points to."""
    shown: np.ndarray
    """Mapped (block,) int32: the ids of the last verification."""
    shown_pointer: int
    drafted: np.dtype | None = None
    """Of the logits that the last drafts came from; the same bytes hold either type."""
    user: weakref.ref[Drafts] | None = None


class DraftPool:
    """Memories of one device's drafts: a text's is lent to the next one of its shape, so that it
    finds the steps captured for the first."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memories: dict[tuple[Any, ...], list[DraftMemory]] = {}

    def lend(self, block: int, vocab: int, *, drawn: bool, held: str | None) -> DraftMemory:
        """Gives memory that no living text uses."""
        memories = self._memories.setdefault((block, vocab, drawn, held), [])
        for memory in memories:
            if memory.user is None or memory.user() is None:
                return memory
        device, stride = self._device, -(-vocab // _GROUP) * _GROUP
        shown, pointer = device.mapped((block,), np.int32)
        arrays = {
            "ids": device.empty((1, block * (1 + block)), np.int32),
            "start": device.empty((1,), np.int32),
            "held": device.empty((1, block, vocab), held) if held else None,
            "logits": device.empty((block, stride), np.float32) if drawn else None,
            "weights": device.empty((block, WEIGHT_BYTES), np.uint8) if drawn else None,
            "shares": device.empty((block,), np.float64),
            "token": device.empty((block,), np.int32),
            "kept": device.empty((block,), np.uint8),
        }
        memories.append(
            DraftMemory(
                state=device.empty((1,), DRAFT_STATE),
                arrays=arrays,
                shown=shown,
                shown_pointer=pointer,
            )
        )
        return memories[-1]


def load_draft_kernels(device: Device, folder: Path) -> dict[str, Any]:
    """Compiles the kernels of drafting, or finds them compiled."""
    return device.kernels(folder / "draft.cu", DRAFT_KERNELS)


class CudaDrafts:
    """The part of `CudaOps` that drafts; what it takes of the other part is only declared here."""

    device: Device
    canvas: Callable[..., Canvas]
    _launch: Callable[..., None]
    _published: Callable[[CanvasMemory, int], Published]
    _draft_pool: DraftPool

    def drafts(
        self,
        *,
        block: int,
        vocab_size: int,
        sampling: Sampling,
        seed: int,
        sample_index: int,
        mask_token_id: int,
        stops: tuple[int, ...],
        banned: tuple[int, ...],
        beta: float = 1.0,
        held: str | None = None,
    ) -> Drafts:
        """See DraftOps; ConfigError for more stops than kernels look at."""
        if len(stops) > MAX_STOPS:
            raise ConfigError(f"{MAX_STOPS} tokens at most can end a text, not {len(stops)}")
        canvas = self.canvas(
            block=block,
            vocab_size=vocab_size,
            sampling=sampling,
            selection=None,
            seed=seed,
            sample_index=sample_index,
            mask_token_id=mask_token_id,
            eos_token_id=-1,
            banned=banned,
        )
        memory = self._draft_pool.lend(block, vocab_size, drawn=not sampling.greedy, held=held)
        drafts = Drafts(
            canvas=canvas,
            block=block,
            beta=beta,
            stops=stops,
            ids=memory.arrays["ids"],
            start=memory.arrays["start"],
            held=memory.arrays["held"],
            scratch=memory,
        )
        self.device.upload(drafts.ids, np.full(drafts.ids.shape, mask_token_id, np.int32))
        self.device.upload(memory.state, _state_of(drafts))
        memory.user, memory.drafted = weakref.ref(drafts), None
        return drafts

    def begin_drafts(self, drafts: Drafts, *, start: int, position: int) -> None:
        """See DraftOps."""
        self.device.flush()
        self._launch("begin_drafts", 1, 32, drafts.scratch.state.pointer, start, position)
        self.device.flush()
        drafts.position = position

    def verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        """See DraftOps; a row that cannot be sampled is reported by `verified`."""
        self.launch_verify(rows, drafts, first=first, stride=stride)
        self._launch("settle", 1, 32, drafts.scratch.state.pointer)
        drafts.canvas.scratch.launched += 1
        drafts.step += 1

    def launch_verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        """Enqueues what is found of each row and settles nothing: for those who time it."""
        scratch: CanvasMemory = drafts.canvas.scratch
        num_rows = rows.size // drafts.canvas.vocab_size
        kernel, more = f"verify_{rows.dtype.name}", ()
        if drafts.beta < 1.0:
            assert first is not None, "beta is below 1: first masks are needed"
            kernel, more = f"verify_mixed_{rows.dtype.name}", (first.pointer, stride)
        assert drafts.scratch.drafted in (None, rows.dtype), "drafts came from another type"
        pointers = (rows.pointer, *more, drafts.scratch.state.pointer)
        self._launch(kernel, num_rows, scratch.row_threads, *pointers)

    def append_kept(self, kv: Any, kv_new: Any, drafts: Drafts) -> None:
        """See DraftOps."""
        row_bytes = kv.nbytes // kv.shape[0]
        pointers = (kv.pointer, kv_new.pointer, drafts.scratch.state.pointer)
        self._launch("append_kept", COPY_BLOCKS, 256, *pointers, row_bytes, kv.shape[0])

    def propose(self, masks: Any, drafts: Drafts) -> None:
        """See DraftOps; a row that cannot be sampled is reported by the next `verified`."""
        if drafts.block == 1:
            return
        scratch: CanvasMemory = drafts.canvas.scratch
        everything = masks.size // drafts.canvas.vocab_size != drafts.block
        kernel = f"propose_{masks.dtype.name}"
        pointers = (masks.pointer, int(everything), drafts.scratch.state.pointer)
        drafts.scratch.drafted = masks.dtype
        self._launch(kernel, drafts.block - 1, scratch.row_threads, *pointers)

    def verified(self, drafts: Drafts) -> Verified:
        """See DraftOps."""
        self.device.flush(repeats=True)
        scratch: CanvasMemory = drafts.canvas.scratch
        found = self._published(scratch, scratch.launched)
        if found.failed:
            raise EngineError(
                "a row of logits has no finite highest value among those allowed; the graph "
                "overflows: try another precision, or allow more tokens"
            )
        num_kept = found.progress.num_committed
        ids = tuple(drafts.scratch.shown[:num_kept].tolist())
        return Verified(num_kept, ids, found.progress.ended)

    def draft_ids(self, drafts: Drafts) -> tuple[int, ...]:
        """See DraftOps."""
        return tuple(self.device.download(drafts.ids)[0, : drafts.block].tolist())


def _state_of(drafts: Drafts) -> np.ndarray:
    """Gives the state that kernels read, (1,) DRAFT_STATE."""
    memory: DraftMemory = drafts.scratch
    state = np.zeros(1, DRAFT_STATE)
    for name in ("ids", "start", "logits", "weights", "shares", "token", "kept"):
        array = memory.arrays[name]
        state[name] = 0 if array is None else array.pointer
    logits = memory.arrays["logits"]
    state["canvas"], state["shown"] = drafts.canvas.scratch.state.pointer, memory.shown_pointer
    state["block"] = drafts.block
    state["stride"] = 0 if logits is None else logits.shape[1]
    state["num_stops"], state["stops"][0, : len(drafts.stops)] = len(drafts.stops), drafts.stops
    state["share"], state["rest"] = drafts.beta, 1.0 - drafts.beta
    return state
