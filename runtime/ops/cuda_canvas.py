"""A canvas's device memory: allocated once per shape, handed to the next canvas when it is free.

So a second text allocates nothing, and its steps, having the same addresses, are those captured
for the first one. Knows no kernel.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..gpu.device import Device, DeviceArray
from .base import CHUNK, Canvas
from .cuda_state import RING, STATE, permitted_bits, sampling_state, selection_state

_STATE_ARRAYS = ("ids", "masked", "chosen", "candidate", "score", "log_prob")
_OPTIONAL_ARRAYS = ("unmask_chance", "transition", "sigma", "told", "times", "bias", "seen")

ROW_WARPS, TRANSITION_WARPS = 12, 10
"""Warps at most that share a row: what kernels/sample.cu and transition.cu are compiled for."""


@dataclass(slots=True, kw_only=True)
class CanvasMemory:
    """One canvas's device memory, and where the host stands with it."""

    arrays: Mapping[str, DeviceArray | None]
    """By name of `Canvas`'s fields."""
    state: DeviceArray
    """(1,) STATE."""
    staged: np.ndarray
    """Mapped (2 + 2 block,) int32: what the next block begins with."""
    published: np.ndarray
    """Mapped (RING,) uint64: progress words."""
    shown: np.ndarray
    """Mapped (block,) int32: the ids of a finished block."""
    mapped_pointers: tuple[int, int, int]
    """Device addresses of `staged`, `published` and `shown`."""
    owned: tuple[DeviceArray, DeviceArray]
    """Arrays that only the state points to: chunk sums and ranks."""
    grid: int
    """Rows."""
    row_threads: int
    block_threads: int
    user: weakref.ref[Canvas] | None = None
    launched: int = field(default=0)
    """Words that will have been published once all that is enqueued has run."""
    known: int = 0
    """Highest word read so far."""
    begun: int = 0
    """Word of the last block's begin."""
    steps_in_block: int = 0
    finished: bool = False
    """True when the last word read says that nothing is masked, so that `shown` is valid."""


class CanvasPool:
    """Canvas memories of one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memories: dict[tuple[Any, ...], list[CanvasMemory]] = {}

    def lend(self, values: Mapping[str, np.ndarray | None], chunks: int) -> CanvasMemory:
        """Gives memory that holds these values and that no living canvas uses."""
        key = (
            *((name, None if v is None else (v.shape, v.dtype.str)) for name, v in values.items()),
            chunks,
        )
        memories = self._memories.setdefault(key, [])
        memory = next((m for m in memories if m.user is None or m.user() is None), None)
        if memory is None:
            memory = self._allocate(values, chunks)
            memories.append(memory)
        else:
            self._device.synchronize()  # its last text may have been left in the middle of a step
            memory.published[:] = 0
            memory.launched = memory.known = memory.begun = memory.steps_in_block = 0
            memory.finished = False
        for name, array in memory.arrays.items():
            source = values[name]
            if array is not None and source is not None:
                self._device.upload(array, source)
        return memory

    def _allocate(self, values: Mapping[str, np.ndarray | None], chunks: int) -> CanvasMemory:
        device = self._device
        ids = values["ids"]
        assert ids is not None
        block = ids.size
        most = ROW_WARPS if values["transition"] is None else TRANSITION_WARPS
        staged, staged_pointer = device.mapped((2 + 2 * block,), np.int32)
        published, published_pointer = device.mapped((RING,), np.uint64)
        shown, shown_pointer = device.mapped((block,), np.int32)
        return CanvasMemory(
            arrays={
                name: None if v is None else device.empty(v.shape, v.dtype)
                for name, v in values.items()
            },
            state=device.empty((1,), STATE),
            staged=staged,
            published=published,
            shown=shown,
            mapped_pointers=(staged_pointer, published_pointer, shown_pointer),
            owned=(device.empty((block, chunks), np.float32), device.empty((block,), np.int32)),
            grid=block,
            row_threads=32 * min(most, max(2, -(-chunks * CHUNK // 256))),
            block_threads=32 * min(16, -(-block // 32)),
        )


def first_values(canvas: Canvas, block: int) -> dict[str, np.ndarray | None]:
    """Gives what a canvas's device arrays begin with, from one whose optional fields are NumPy's.

    Args:
        canvas: `unmask_chance`, `transition`, `told`, `times`, `bias` and `allowed` as the caller
            gave them.
        block: Positions.
    """
    penalised = canvas.sampling.repetition_penalty != 1.0
    return {
        "ids": np.full((1, block), canvas.mask_token_id, np.int32),
        "masked": np.zeros(block, np.uint8),
        "chosen": np.zeros(block, np.uint8),
        "candidate": np.zeros(block, np.int32),
        "score": np.zeros(block, np.float32),
        "log_prob": np.zeros(block, np.float32),
        "unmask_chance": _as(canvas.unmask_chance, np.float64),
        "transition": _as(canvas.transition, np.float64),
        "sigma": None if canvas.transition is None else np.zeros(1, np.float32),
        "told": canvas.told,
        "times": _as(canvas.times, np.float32),
        "bias": _as(canvas.bias, np.float32),
        "allowed": permitted_bits(canvas.vocab_size, canvas.banned, canvas.allowed),
        "seen": np.zeros(canvas.vocab_size, np.uint8) if penalised else None,
    }


def _as(values: Any, dtype: Any) -> np.ndarray | None:
    return None if values is None else np.asarray(values, dtype)


def state_of(canvas: Canvas, memory: CanvasMemory, chunks: int) -> np.ndarray:
    """Gives the state that kernels read, (1,) STATE."""
    state = np.zeros(1, STATE)
    sampling_state(state, canvas.sampling, canvas.seed, canvas.sample_index)
    selection_state(state, canvas.selection)
    for name in _STATE_ARRAYS + _OPTIONAL_ARRAYS:
        array = memory.arrays[name]
        state[name] = 0 if array is None else array.pointer
    allowed, chances = memory.arrays["allowed"], memory.arrays["unmask_chance"]
    transition, times = memory.arrays["transition"], memory.arrays["times"]
    assert allowed is not None
    state["processed"] = memory.arrays["bias"] is not None or memory.arrays["seen"] is not None
    state["permitted"] = allowed.pointer
    state["permitted_stride"] = 2 * chunks if allowed.shape[0] > 1 else 0
    state["sums"], state["rank"] = (array.pointer for array in memory.owned)
    state["staged"], state["published"], state["shown"] = memory.mapped_pointers
    state["block"], state["vocab"], state["chunks"] = memory.grid, canvas.vocab_size, chunks
    state["num_chances"] = 0 if chances is None else chances.size
    state["num_times"] = 0 if times is None else times.size
    state["num_steps"] = 0 if transition is None else transition.shape[0]
    state["mask_token_id"], state["eos_token_id"] = canvas.mask_token_id, canvas.eos_token_id
    return state
