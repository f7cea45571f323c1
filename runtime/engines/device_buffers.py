"""Arrays on a device that all engines of a set share.

| what | lives |
|---|---|
| `kv` inputs | one allocation, for the largest context; smaller ones see its prefix |
| other inputs | one allocation per engine |
| outputs | one allocation per role; any run of the set overwrites them |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ..bundle.manifest import GraphSpec, TensorSpec
from ..errors import DeviceError, EngineError
from ..gpu.device import Device
from .memory_need import out_of_memory


class DeviceBuffers:
    """The arrays of a set; see the module's table."""

    def __init__(self, device: Device, specs: Sequence[GraphSpec]) -> None:
        self._device, self._specs = device, specs
        self._scratch: Any = None
        self._scratch_bytes = 0
        self._sizes: dict[tuple[Any, ...], int] = {}
        self._arenas: dict[Sequence[Any], Any] = {}
        for spec in specs:
            for tensor in (*spec.inputs, *spec.outputs):
                key = self._key(tensor, spec)
                self._sizes[key] = max(prod(tensor.shape), self._sizes.get(key, 0))

    def _key(self, tensor: TensorSpec, spec: GraphSpec) -> tuple[Any, ...]:
        if tensor.role == "kv":
            return ("kv", tensor.dtype, tensor.shape[1:])
        if tensor in spec.outputs:
            return (tensor.role, tensor.dtype)
        return (spec.key, tensor.name)

    def view(self, tensor: TensorSpec, spec: GraphSpec) -> Any:
        """Returns the tensor's array: zeros at first, the same memory at every call."""
        key = self._key(tensor, spec)
        if key not in self._arenas:
            self._arenas[key] = self._allocate(self._sizes[key], tensor.dtype)
            self._device.zero(self._arenas[key])
        return replace(self._arenas[key], shape=tensor.shape)

    def scratch(self, size: int) -> Any:
        """Allocates the memory in which TensorRT computes; asked for before everything else."""
        self._scratch_bytes = size
        self._scratch = self._allocate(max(size, 1), "uint8")
        return self._scratch

    def reserve(self) -> None:
        """Allocates what every shape needs, so that memory runs out now or never."""
        for spec in self._specs:
            for tensor in (*spec.inputs, *spec.outputs):
                self.view(tensor, spec)

    def _allocate(self, size: int, dtype: str) -> Any:
        """Allocates; EngineError says what all buffers need and which shape would fit."""
        try:
            return self._device.empty((size,), dtype)
        except DeviceError as error:
            arrays = [self._scratch, *self._arenas.values()]
            held = sum(array.nbytes for array in arrays if array is not None)
            free = self._device.memory()[0] + held
            message = out_of_memory(self._specs, self._scratch_bytes, free)
            raise EngineError(f"{message} ({error})") from error

    def account(self) -> dict[str, int]:
        """Returns bytes allocated by role; inputs of engines' own count as `inputs`."""
        held: dict[str, int] = {}
        for place, arena in self._arenas.items():
            own = isinstance(place[0], tuple)  # an input of one shape, by the shape's key
            role = "inputs" if own else str(place[0])
            held[role] = held.get(role, 0) + arena.nbytes
        return held

    def clear(self) -> None:
        """Drops every allocation."""
        self._arenas.clear()
        self._scratch = None
