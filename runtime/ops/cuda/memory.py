"""Memory of texts on a device, lent from one text to the next of its shape.

So a second text allocates nothing, and its steps, having the same addresses, are those captured for
the first one.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...gpu.device import Device, DeviceArray
from .ops import Words
from .state import RING


class Blank(NamedTuple):
    """An array that kernels write before they read it."""

    shape: tuple[int, ...]
    dtype: Any


Values = Mapping[str, np.ndarray | Blank | None]
"""What a text's arrays begin with, by name; None where it has none."""


@dataclass(slots=True, kw_only=True)
class TextMemory:
    """One text's device memory."""

    state: DeviceArray
    """(1,) of the primitive's structure."""
    arrays: Mapping[str, DeviceArray | None]
    """By name: of a member of the structure, where it has one."""
    mapped: Mapping[str, np.ndarray]
    """int32 arrays of the host that kernels see, by name of a member."""
    words: Words
    addresses: Mapping[str, int]
    """Where the device sees `mapped` and the progress words, by name of a member."""
    user: weakref.ref[Any] | None = field(default=None)


class TextMemories:
    """The memory of one primitive's texts."""

    def __init__(self, device: Device, layout: np.dtype) -> None:
        self._device, self._layout = device, layout
        self._memories: dict[tuple[Any, ...], list[TextMemory]] = {}

    def lend(self, state: np.ndarray, values: Values, mapped: Mapping[str, int]) -> TextMemory:
        """Gives memory that no living text uses; the caller sets `user` to the text it makes.

        Args:
            state: (1,) of the structure. Its pointers are written here.
            values: What the arrays begin with.
            mapped: How long each array in mapped memory is.
        """
        key = tuple(
            (name, None if value is None else (value.shape, np.dtype(value.dtype).str))
            for name, value in values.items()
        )
        memories = self._memories.setdefault(key, [])
        memory = next((m for m in memories if m.user is None or m.user() is None), None)
        if memory is None:
            memory = self._allocate(values, mapped)
            memories.append(memory)
        else:
            self._device.synchronize()  # its last text may have been left in the middle of a step
            memory.words.reset()
        for name, array in memory.arrays.items():
            value = values[name]
            if array is not None and isinstance(value, np.ndarray):
                self._device.upload(array, value)
            if name in (self._layout.names or ()):
                state[name] = 0 if array is None else array.pointer
        for name, address in memory.addresses.items():
            state[name] = address
        self._device.upload(memory.state, state)
        return memory

    def _allocate(self, values: Values, mapped: Mapping[str, int]) -> TextMemory:
        device = self._device
        seen = {name: device.mapped((size,), np.int32) for name, size in mapped.items()}
        published, published_at = device.mapped((RING,), np.uint64)
        return TextMemory(
            state=device.empty((1,), self._layout),
            arrays={
                name: None if value is None else device.empty(value.shape, value.dtype)
                for name, value in values.items()
            },
            mapped={name: array for name, (array, _) in seen.items()},
            words=Words(published),
            addresses={
                "published": published_at,
                **{name: address for name, (_, address) in seen.items()},
            },
        )
