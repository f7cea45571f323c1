"""Drafting and verifying as kernels on a device.

A step is four launches whose arguments never change, so that run and step are captured together;
how many drafts were kept, and so which proposal is read and how many cache rows are written, is
known on the device first. The host waits once per step, for a word in mapped memory beside the ids
that became certain.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...gpu.device import DeviceArray
from ..cuda.ops import COPY_BLOCKS, CudaOps, Words, pitches
from ..cuda.state import RING, permitted_bits, read_struct, row_threads, write_rows
from ..rows.contract import CHUNK
from .contract import MAX_STOPS, DraftOps, Drafts, DraftSpec, Verified

DRAFT_KERNELS = (
    "begin_drafts", "settle", "append_kept",
    "verify_float32", "verify_float16", "verify_mixed_float32", "verify_mixed_float16",
    "propose_float32", "propose_float16",
)  # fmt: skip
DRAFT_STATE = read_struct("drafts/drafts.cuh", "Drafts")
WEIGHT_BYTES = 32
"""Kept per draft of how its logits became weights."""
ROW_WARPS = 12
"""Warps at most that share a row: what the kernels are compiled for."""
_GROUP = 4 * CHUNK
"""Weights that are summed together, so that rows of logits are as long as whole groups."""


@dataclass(slots=True, kw_only=True)
class DraftMemory:
    """A text's device memory: lent to the next one of its shape, so that it finds the steps
    captured for the first."""

    state: DeviceArray
    """(1,) DRAFT_STATE."""
    arrays: Mapping[str, DeviceArray | None]
    """By name, of members of the state and of `Drafts`."""
    shown: np.ndarray
    """Mapped (block,) int32: the ids of the last verification."""
    pointers: Mapping[str, int]
    """Device addresses of `shown` and of the progress words."""
    words: Words
    drafted: np.dtype | None = None
    """Of the logits that the last drafts came from; the same bytes hold either type."""
    user: weakref.ref[Drafts] | None = None


class CudaDrafts(DraftOps):
    """The primitive `drafts` on a device."""

    def __init__(self, ops: CudaOps) -> None:
        """Compiles the kernels, or finds them compiled; DeviceError if that fails."""
        self._ops, self._device = ops, ops.device
        self._kernels = ops.kernels("drafts/draft.cu", DRAFT_KERNELS)
        self._memories: dict[tuple[Any, ...], list[DraftMemory]] = {}

    def drafts(self, spec: DraftSpec) -> Drafts:
        if len(spec.stops) > MAX_STOPS:
            raise ConfigError(f"{MAX_STOPS} tokens at most can end a text, not {len(spec.stops)}")
        memory = self._lend(spec)
        ids, start = memory.arrays["ids"], memory.arrays["start"]
        permitted = memory.arrays["permitted"]
        assert ids is not None
        assert permitted is not None
        drafts = Drafts(spec=spec, ids=ids, start=start, held=memory.arrays["held"], memory=memory)
        self._device.upload(ids, np.full(ids.shape, spec.mask_token_id, np.int32))
        self._device.upload(permitted, permitted_bits(spec))
        self._device.upload(memory.state, _state_of(spec, memory))
        memory.user, memory.drafted = weakref.ref(drafts), None
        return drafts

    def _lend(self, spec: DraftSpec) -> DraftMemory:
        """Gives memory that no living text uses."""
        drawn = not spec.sampling.greedy
        key = (spec.block, spec.vocab_size, drawn, spec.held)
        memories = self._memories.setdefault(key, [])
        for memory in memories:
            if memory.user is None or memory.user() is None:
                self._device.synchronize()  # its last text may have been left within a step
                memory.words.reset()
                return memory
        device, block, vocab = self._device, spec.block, spec.vocab_size
        stride, chunks = -(-vocab // _GROUP) * _GROUP, -(-vocab // CHUNK)
        shown, shown_at = device.mapped((block,), np.int32)
        published, published_at = device.mapped((RING,), np.uint64)
        arrays = {
            "ids": device.empty((1, block * (1 + block)), np.int32),
            "start": device.empty((1,), np.int32),
            "held": device.empty((1, block, vocab), spec.held) if spec.held else None,
            "permitted": device.empty((1, 2 * chunks), np.uint32),
            "sums": device.empty((block, chunks), np.float32),
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
                pointers={"shown": shown_at, "published": published_at},
                words=Words(published),
            )
        )
        return memories[-1]

    def begin_drafts(self, drafts: Drafts, *, start: int, position: int) -> None:
        self._device.flush()
        self._launch("begin_drafts", 1, 32, drafts.memory.state.pointer, start, position)
        self._device.flush()
        drafts.position = position

    def verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        self.launch_verify(rows, drafts, first=first, stride=stride)
        self._launch("settle", 1, 32, drafts.memory.state.pointer)
        drafts.memory.words.launched += 1
        drafts.step += 1

    def launch_verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        """Enqueues what is found of each row and settles nothing: for those who time it."""
        spec = drafts.spec
        num_rows = rows.size // spec.vocab_size
        kernel, more = f"verify_{rows.dtype.name}", ()
        if spec.beta < 1.0:
            assert first is not None, "beta is below 1: first masks are needed"
            kernel, more = f"verify_mixed_{rows.dtype.name}", (first.pointer, stride)
        assert drafts.memory.drafted in (None, rows.dtype), "drafts came from another type"
        pointers = (rows.pointer, *more, drafts.memory.state.pointer)
        self._launch(kernel, num_rows, row_threads(spec, ROW_WARPS), *pointers)

    def append_kept(self, kv: Any, kv_new: Any, drafts: Drafts) -> None:
        pointers = (kv.pointer, kv_new.pointer, drafts.memory.state.pointer)
        self._launch("append_kept", COPY_BLOCKS, 256, *pointers, *pitches(kv), kv.shape[0])

    def propose(self, masks: Any, drafts: Drafts) -> None:
        spec = drafts.spec
        if spec.block == 1:
            return
        everything = masks.size // spec.vocab_size != spec.block
        kernel = f"propose_{masks.dtype.name}"
        pointers = (masks.pointer, int(everything), drafts.memory.state.pointer)
        drafts.memory.drafted = masks.dtype
        self._launch(kernel, spec.block - 1, row_threads(spec, ROW_WARPS), *pointers)

    def verified(self, drafts: Drafts) -> Verified:
        self._device.flush(repeats=True)
        words = drafts.memory.words
        found = self._ops.wait(words, words.launched).progress
        ids = tuple(drafts.memory.shown[: found.num_committed].tolist())
        return Verified(found.num_committed, ids, found.ended)

    def draft_ids(self, drafts: Drafts) -> tuple[int, ...]:
        return tuple(self._device.download(drafts.ids)[0, : drafts.block].tolist())

    def _launch(self, kernel: str, grid: int, block: int, *arguments: int) -> None:
        self._device.launch(self._kernels[kernel], grid, block, arguments)


def _state_of(spec: DraftSpec, memory: DraftMemory) -> np.ndarray:
    """Gives the state that kernels read, (1,) DRAFT_STATE."""
    state = np.zeros(1, DRAFT_STATE)
    write_rows(state[0], spec)
    for name, array in memory.arrays.items():
        if name != "held":
            state[name] = 0 if array is None else array.pointer
    for name, pointer in memory.pointers.items():
        state[name] = pointer
    logits = memory.arrays["logits"]
    state["stride"] = 0 if logits is None else logits.shape[1]
    state["num_stops"], state["stops"][0, : len(spec.stops)] = len(spec.stops), spec.stops
    state["share"], state["rest"] = spec.beta, 1.0 - spec.beta
    return state
