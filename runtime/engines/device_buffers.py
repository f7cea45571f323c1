"""The arrays of a set on a device, and what to do where there is no memory for them.

Weights and scratch memory are TensorRT's and handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..bundle.manifest import GraphSpec
from ..errors import DeviceError, EngineError
from ..gpu.device import Device, DeviceArray
from .buffers import Buffers, buffers_of, bytes_by_role

_MIB = 1 << 20


class DeviceBuffers(Buffers[DeviceArray]):
    """Arrays on a device."""

    def __init__(self, device: Device, specs: Sequence[GraphSpec]) -> None:
        super().__init__(
            specs, self._zeros, lambda array, shape: replace(array, shape=tuple(shape))
        )
        self._device = device
        self._scratch: Any = None
        self._scratch_bytes = 0

    def scratch(self, size: int) -> Any:
        """Allocates the memory in which TensorRT computes; asked for before everything else."""
        self._scratch_bytes = size
        self._scratch = self._allocate(max(size, 1), "uint8")
        return self._scratch

    def _zeros(self, size: int, dtype: str) -> DeviceArray:
        array = self._allocate(size, dtype)
        self._device.zero(array)
        return array

    def _allocate(self, size: int, dtype: str) -> DeviceArray:
        """Allocates; EngineError says what all buffers need and which shape would fit."""
        try:
            return self._device.empty((size,), dtype)
        except DeviceError as error:
            held = sum(array.nbytes for array in (self._scratch, *self) if array is not None)
            free = self._device.memory()[0] + held
            message = out_of_memory(self._specs, self._scratch_bytes, free)
            raise EngineError(f"{message} ({error})") from error

    def clear(self) -> None:
        """Drops every array."""
        super().clear()
        self._scratch = None


def buffer_bytes(specs: Sequence[GraphSpec]) -> dict[str, int]:
    """Returns bytes per role of what these shapes need together."""
    return bytes_by_role(buffers_of(specs).values())


def out_of_memory(specs: Sequence[GraphSpec], scratch: int, free: int) -> str:
    """Says in one line what was needed, what is free, and which shape alone would fit.

    Args:
        scratch: Bytes of TensorRT's scratch memory.
        free: Bytes left on the device.
    """
    need = buffer_bytes(specs)
    parts = ", ".join(f"{role} {size / _MIB:.1f}" for role, size in need.items())
    text = (
        f"out of device memory: buffers need {(sum(need.values()) + scratch) / _MIB:.1f} MiB "
        f"({parts}, scratch {scratch / _MIB:.1f}), {free / _MIB:.1f} are free; "
    )
    fitting = [spec for spec in specs if sum(buffer_bytes([spec]).values()) + scratch <= free]
    if not fitting:
        return text + "no shape of the bundle fits alone: close other programs"
    best = max(fitting, key=lambda spec: (spec.context, spec.rows))
    sizes = f"--block {best.block or best.rows} --context {best.context}"
    return text + (f"{best.label} alone would fit: close other programs, or export with {sizes}")
