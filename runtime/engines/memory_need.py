"""What a bundle's buffers take on a device, and which of its shapes would still fit.

One KV cache for the largest context, one array per output role for the most rows, small
inputs: how `device_buffers.DeviceBuffers` lays them out. Weights and scratch memory are TensorRT's
and handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..bundle.manifest import GraphSpec

_MIB = 1 << 20


def buffer_bytes(specs: Sequence[GraphSpec]) -> dict[str, int]:
    """Returns bytes per role of what these shapes need together; inputs but `kv` as `inputs`."""
    largest: dict[str, int] = {}
    inputs = 0
    for spec in specs:
        for tensor in (*spec.inputs, *spec.outputs):
            size = prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
            if tensor.role == "kv" or tensor in spec.outputs:
                largest[tensor.role] = max(size, largest.get(tensor.role, 0))
            else:
                inputs += size
    return {**largest, "inputs": inputs}


def out_of_memory(specs: Sequence[GraphSpec], scratch: int, free: int) -> str:
    """Says in one line what was needed, what is free, and which shape alone would fit.

    Args:
        specs: Every shape that was to be served.
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
