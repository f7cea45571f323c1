"""An engine set that runs the exported modules with PyTorch in a device's own buffers.

So the device loop, its kernels and its captured steps can be run and timed on any GPU, whether
TensorRT is there or not. Runs are enqueued on the device's stream; what PyTorch allocates meanwhile
comes from a pool of its own, so that a captured run's memory is never another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from ..runtime.bundle.manifest import GraphKey, GraphSpec
from ..runtime.engines.base import find_spec
from ..runtime.gpu.device import Device, DeviceArray

Alias = Callable[[DeviceArray], torch.Tensor]
"""Makes a tensor of a device array's memory."""


class _Interface:
    """What PyTorch asks of an array on a GPU that is another library's."""

    def __init__(self, array: DeviceArray) -> None:
        self.owner = array.owner
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.pointer, False),
            "strides": None,
            "version": 3,
        }


def cuda_alias(array: DeviceArray) -> torch.Tensor:
    """Gives a tensor over a device array, which it keeps."""
    return torch.as_tensor(_Interface(array), device="cuda")


class CudaScope:
    """Where PyTorch's work goes: a stream that is not its own, and a memory pool."""

    def __init__(self, stream: int) -> None:
        """Takes the stream's handle."""
        self._stream = torch.cuda.ExternalStream(stream)
        self._pool = torch.cuda.MemPool()

    def __call__(self) -> AbstractContextManager[Any]:
        """Gives the context in which to enqueue."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.cuda.stream(self._stream))
        stack.enter_context(torch.cuda.use_mem_pool(self._pool))
        return stack


class TorchDeviceEngine:
    """One module at one static shape."""

    def __init__(
        self,
        module: Callable[..., Sequence[torch.Tensor]],
        spec: GraphSpec,
        device: Device,
        kv: DeviceArray,
        outputs: Mapping[str, DeviceArray],
        alias: Alias,
        scope: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._module, self._device, self._scope = module, device, scope
        self.spec = spec
        self.inputs = {
            tensor.name: kv.rows(0, tensor.shape[0])
            if tensor.role == "kv"
            else device.empty(tensor.shape, tensor.dtype)
            for tensor in spec.inputs
        }
        self.outputs = outputs
        self._given = [alias(array) for array in self.inputs.values()]
        self._made = [alias(array) for array in outputs.values()]

    def run(self) -> None:
        """Enqueues one run."""
        self._device.submit(id(self), self._enqueue)

    def _enqueue(self) -> None:
        with self._scope():
            for target, result in zip(self._made, self._module(*self._given), strict=True):
                target.copy_(result)


class TorchDeviceEngines:
    """Modules by graph name, with their buffers on a device."""

    name = "torch-device"
    reason = "made for measuring"
    threads = 1

    def __init__(
        self,
        modules: Mapping[str, Callable[..., Sequence[torch.Tensor]]],
        specs: Sequence[GraphSpec],
        device: Device,
        *,
        alias: Alias = cuda_alias,
        scope: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Allocates one KV cache for the largest context.

        Args:
            modules: By graph name; inputs and outputs in the specs' order.
            specs: Shapes on offer.
            device: Where buffers live.
            alias: How PyTorch sees them.
            scope: Where PyTorch's work goes; None: the device's CUDA stream.
        """
        self.specs = tuple(specs)
        self.device: Device | None = device
        self._device, self._modules, self._alias = device, modules, alias
        self._scope = scope or CudaScope(device.stream)
        largest = max(self.specs, key=lambda spec: spec.context).tensor("kv")
        self._kv = device.empty(largest.shape, largest.dtype)
        device.zero(self._kv)
        self._engines: dict[GraphKey, TorchDeviceEngine] = {}

    def engine(self, spec: GraphSpec) -> TorchDeviceEngine:
        """Gives the engine of this shape; EngineError if there is none."""
        key = spec.key
        if key not in self._engines:
            spec = find_spec(self.specs, spec)
            outputs = {
                tensor.name: self._device.empty(tensor.shape, tensor.dtype)
                for tensor in spec.outputs
            }
            self._engines[key] = TorchDeviceEngine(
                self._modules[spec.name],
                spec,
                self._device,
                self._kv,
                outputs,
                self._alias,
                self._scope,
            )
        return self._engines[key]

    def close(self) -> None:
        """Lets go of engines and buffers."""
        self._device.synchronize()
        self._device.forget()
        self._engines.clear()
