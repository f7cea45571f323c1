"""Canvases on a device: what `unmask` and `transition` share.

A step is two launches, `sample` and `commit`, whose arguments never change, so that engine and
sampling are captured together. A canvas's memory is allocated once per shape and handed to the next
canvas when it is free: a second text allocates nothing, and its steps, having the same addresses,
are those captured for the first one.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from ...errors import ConfigError
from ...gpu.device import DeviceArray
from ..core import Progress
from ..cuda.ops import CudaOps, Words, slot_of
from ..cuda.state import MAX_BLOCK, MAX_VOCAB, RING, permitted_bits, row_threads, write_rows
from ..rows.contract import CHUNK
from .contract import Canvas, CanvasOps, CanvasT, Slot, SpecT_contra

Values = dict[str, "list[np.ndarray | None]"]
"""What a canvas's arrays begin with, by name and slot; None where a slot has none."""


@dataclass(slots=True, kw_only=True)
class CanvasMemory:
    """One canvas's device memory, and where the host stands with it."""

    arrays: Mapping[str, DeviceArray | None]
    """By name, of members of the state: (batch, …)."""
    state: DeviceArray
    """(batch,) of the primitive's structure."""
    staged: np.ndarray
    """Mapped (batch, 3 + 2 block) int32: what the next block of a slot begins with."""
    shown: np.ndarray
    """Mapped (batch, block) int32: the ids of a finished block."""
    mapped: Mapping[str, np.ndarray]
    """(batch,) uint64: device addresses of `staged`, `shown` and the progress words, by slot."""
    words: tuple[Words, ...]
    """By slot."""
    begun: list[int]
    """By slot: the word of the last block's begin."""
    steps_in_block: list[int]
    finished: list[bool]
    """By slot: whether the last word read says that nothing is masked, so that `shown` is valid."""
    user: weakref.ref[Canvas] | None = field(default=None)

    def reset(self) -> None:
        """Forgets the last canvas; nothing of it may still run."""
        for slot, words in enumerate(self.words):
            words.reset()
            self.begun[slot] = self.steps_in_block[slot] = 0
            self.finished[slot] = False


class CudaCanvases(CanvasOps[SpecT_contra, CanvasT], Generic[SpecT_contra, CanvasT]):
    """The part of a primitive that does not depend on how positions are committed."""

    layout: np.dtype
    """Of the structure that kernels read."""
    sample_kernel: str
    """Its name, without the type of logits."""
    row_warps: tuple[int, int]
    """Warps at most that share a row of float32, and of float16: what kernels are compiled for."""

    def __init__(self, ops: CudaOps, kernels: Mapping[str, Any]) -> None:
        self._ops, self._device = ops, ops.device
        self._kernels = kernels
        self._memories: dict[tuple[Any, ...], list[CanvasMemory]] = {}

    @abstractmethod
    def first_values(self, specs: Sequence[SpecT_contra]) -> Values:
        """Gives what the arrays of the primitive's own begin with."""

    @abstractmethod
    def write_state(self, state: Any, spec: SpecT_contra) -> None:
        """Writes what is a primitive's own of a slot's state, pointers aside."""

    @abstractmethod
    def make(self, specs: tuple[SpecT_contra, ...], memory: CanvasMemory) -> CanvasT:
        """Makes the canvas that callers see."""

    def canvas(self, specs: Sequence[SpecT_contra]) -> CanvasT:
        own = tuple(specs)
        _check_size(own[0].block, own[0].vocab_size)
        values = {**_block_values(own), **self.first_values(own)}
        memory = self._lend(values, own[0].block)
        canvas = self.make(own, memory)
        state = np.zeros(len(own), self.layout)
        for slot, spec in enumerate(own):
            write_rows(state[slot], spec)
            state[slot]["mask_token_id"] = spec.mask_token_id
            state[slot]["eos_token_id"] = spec.eos_token_id
            self.write_state(state[slot], spec)
        _point(state, memory, values)
        self._device.upload(memory.state, state)
        memory.user = weakref.ref(canvas)
        return canvas

    def _lend(self, values: Values, block: int) -> CanvasMemory:
        """Gives memory that holds these values and that no living canvas uses."""
        stacked = {name: _stacked(parts) for name, parts in values.items()}
        key = tuple(
            (name, None if v is None else (v.shape, v.dtype.str)) for name, v in stacked.items()
        )
        memories = self._memories.setdefault(key, [])
        memory = next((m for m in memories if m.user is None or m.user() is None), None)
        if memory is None:
            memory = self._allocate(stacked, block)
            memories.append(memory)
        else:
            self._device.synchronize()  # its last text may have been left in the middle of a step
            memory.reset()
        for name, array in memory.arrays.items():
            source = stacked[name]
            if array is not None and source is not None:
                self._device.upload(array, source)
        return memory

    def _allocate(self, values: Mapping[str, np.ndarray | None], block: int) -> CanvasMemory:
        device, ids = self._device, values["ids"]
        assert ids is not None
        batch = len(ids)
        staged, staged_at = device.mapped((batch, 3 + 2 * block), np.int32)
        published, published_at = device.mapped((batch, RING), np.uint64)
        shown, shown_at = device.mapped((batch, block), np.int32)
        places = (("staged", staged, staged_at), ("shown", shown, shown_at),
                  ("published", published, published_at))  # fmt: skip
        slots = np.arange(batch, dtype=np.uint64)
        return CanvasMemory(
            arrays={
                name: None if v is None else device.empty(v.shape, v.dtype)
                for name, v in values.items()
            },
            state=device.empty((batch,), self.layout),
            staged=staged,
            shown=shown,
            mapped={
                name: np.uint64(at) + slots * np.uint64(array[0].nbytes)
                for name, array, at in places
            },
            words=tuple(Words(own) for own in published),
            begun=[0] * batch,
            steps_in_block=[0] * batch,
            finished=[False] * batch,
        )

    def begin_block(
        self,
        canvas: CanvasT,
        ids: np.ndarray,
        masked: np.ndarray,
        *,
        position: int,
        first: int,
        slot: int = 0,
        row: int = 0,
    ) -> int:
        memory: CanvasMemory = canvas.memory
        words = memory.words[slot]
        if memory.begun[slot] > words.known:  # the block before has not been seen to read its own
            self._ops.wait(words, memory.begun[slot])
        staged, block = memory.staged[slot], canvas.block
        staged[:3] = position, first, row
        staged[3 : 3 + block] = ids
        staged[3 + block :] = masked
        self.launch_begin(canvas, slot)
        self._device.flush()
        words.launched += 1
        memory.begun[slot] = words.launched
        memory.steps_in_block[slot] = 0
        memory.finished[slot] = False
        own = canvas.slots[slot]
        own.position, own.first, own.row, own.step = position, first, row, 0
        own.num_masked = own.num_masked_at_start = int(np.count_nonzero(masked))
        return own.num_masked

    def sample(self, logits: DeviceArray, canvas: CanvasT) -> None:
        batch, vocab = len(canvas.slots), canvas.vocab_size
        rows = logits.size // (batch * vocab)
        last = max(slot.row for slot in canvas.slots) + canvas.block
        assert rows >= last, f"{rows} rows of logits for {last} positions"
        kind = logits.dtype.name
        self._launch(
            f"{self.sample_kernel}_{kind}",
            batch * canvas.block,
            row_threads(canvas.specs[0], self.row_warps[kind == "float16"]),
            logits.pointer,
            rows,
            canvas.memory.state.pointer,
        )

    def commit(self, canvas: CanvasT, *, exact: bool = False) -> tuple[Progress, ...]:
        memory: CanvasMemory = canvas.memory
        self.launch_commit(canvas)
        self._device.flush(repeats=True)
        behind = self._ops.run_ahead and not exact
        return tuple(self._progress(memory, slot, own, behind)
                     for slot, own in enumerate(canvas.slots))  # fmt: skip

    def _progress(self, memory: CanvasMemory, slot: int, own: Slot, behind: bool) -> Progress:
        words = memory.words[slot]
        words.launched += 1
        memory.steps_in_block[slot] += 1
        own.step += 1 if own.num_masked else 0
        own.row = 0
        if behind and memory.steps_in_block[slot] == 1:
            return Progress(own.num_masked, 0, 0, False, behind)  # nothing is known yet
        found = self._ops.wait(words, words.launched - int(behind)).progress
        own.num_masked = found.num_masked
        memory.finished[slot] = own.num_masked == 0
        return found._replace(behind=behind)

    def launch_begin(self, canvas: CanvasT, slot: int = 0) -> None:
        """Enqueues a block's begin and counts nothing: for those who time it."""
        state = canvas.memory.state.pointer + slot * self.layout.itemsize
        self._launch("begin_block", 1, _block_threads(canvas.block), state)

    def launch_commit(self, canvas: CanvasT) -> None:
        """Enqueues a commit and counts nothing: for those who time it."""
        batch, pointer = len(canvas.slots), canvas.memory.state.pointer
        self._launch("commit", batch, _block_threads(canvas.block), pointer)

    def _launch(self, kernel: str, grid: int, block: int, *arguments: int) -> None:
        self._device.launch(self._kernels[kernel], grid, block, arguments)

    def ids(self, canvas: CanvasT, slot: int = 0) -> np.ndarray:
        memory: CanvasMemory = canvas.memory
        if memory.finished[slot]:  # costs no synchronisation
            return memory.shown[slot].copy()
        return self._device.download(slot_of(canvas.ids, slot))

    def masked(self, canvas: CanvasT, slot: int = 0) -> np.ndarray:
        return self._device.download(slot_of(canvas.masked, slot)).astype(bool)


def _check_size(block: int, vocab_size: int) -> None:
    if block > MAX_BLOCK:
        raise ConfigError(f"a block has {MAX_BLOCK} positions at most on a GPU, not {block}")
    if vocab_size > MAX_VOCAB:
        raise ConfigError(
            f"a vocabulary has {MAX_VOCAB} ids at most on a GPU, not {vocab_size}; "
            "use --engine onnxruntime"
        )


def _point(state: np.ndarray, memory: CanvasMemory, values: Values) -> None:
    """Writes the addresses of a canvas's arrays into the state of its slots."""
    for name, array in memory.arrays.items():
        for slot, part in enumerate(values[name]):
            if part is not None and array is not None:
                state[slot][name] = slot_of(array, slot).pointer
    for name, pointers in memory.mapped.items():
        state[name] = pointers


def _block_threads(block: int) -> int:
    return 32 * min(16, -(-block // 32))


def _block_values(specs: Sequence[Any]) -> Values:
    """What the arrays that every canvas has begin with."""
    block, chunks = specs[0].block, -(-specs[0].vocab_size // CHUNK)
    return {
        "ids": [np.full(block, spec.mask_token_id, np.int32) for spec in specs],
        "masked": [np.zeros(block, np.uint8) for _ in specs],
        "chosen": [np.zeros(block, np.uint8) for _ in specs],
        "candidate": [np.zeros(block, np.int32) for _ in specs],
        "bias": [as_type(spec.bias, np.float32) for spec in specs],
        "permitted": [permitted_bits(spec) for spec in specs],
        "sums": [np.zeros((block, chunks), np.float32) for _ in specs],
    }


def as_type(values: Any, dtype: Any) -> np.ndarray | None:
    """Gives host values as an array of a type; None as it is."""
    return None if values is None else np.ascontiguousarray(values, dtype)


def _stacked(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Puts slots' values side by side, the shorter ones padded; None where no slot has any."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    shape = tuple(max(sizes) for sizes in zip(*(part.shape for part in given), strict=True))
    found = np.zeros((len(parts), *shape), given[0].dtype)
    for slot, part in enumerate(parts):
        if part is not None:
            found[(slot, *(slice(size) for size in part.shape))] = part
    return found
