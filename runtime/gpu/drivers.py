"""The driver's calls that `cuda.CudaDevice` makes, through either of two bindings.

pycuda is the first choice: it retains the primary context, which TensorRT and ONNX Runtime share.
It is built from source on a board; where it is missing, cuda-bindings, which comes as a wheel and
is there for CUDA graphs and NVRTC anyway, makes the same calls on the same primary context.

Both give plain integers for addresses and handles. Whatever fails raises the class's `Error`.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from ..errors import DeviceError, brief
from .bindings import NON_BLOCKING, REMEDY, BindingsDriver, BindingsError


class Driver(Protocol):
    """One GPU's primary context and one stream."""

    name: str
    capability: tuple[int, int]
    stream: int

    @property
    def Error(self) -> type[BaseException]:  # noqa: N802
        """What a failed call raises."""
        ...

    def allocate(self, size: int) -> tuple[int, Any]:
        """Gives an address, and what frees it."""
        ...

    def to_device(self, pointer: int, values: np.ndarray) -> None:
        """Copies a contiguous array in; it may change at once."""
        ...

    def to_host(self, values: np.ndarray, pointer: int) -> None:
        """Enqueues a copy into a contiguous array."""
        ...

    def on_device(self, target: int, source: int, size: int) -> None:
        """Enqueues a copy."""
        ...

    def fill(self, pointer: int, size: int) -> None:
        """Enqueues zeros."""
        ...

    def mapped(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int]:
        """Gives zeroed page-locked host memory and its device address."""
        ...

    def load(self, image: bytes) -> Any:
        """Loads a kernel image."""
        ...

    def function(self, module: Any, name: str) -> Any:
        """Gives a kernel of a loaded image."""
        ...

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        """Enqueues a kernel whose arguments are all 64 bits wide."""
        ...

    def wait(self) -> None:
        """Waits for the stream."""
        ...

    def memory(self) -> tuple[int, int]:
        """Gives free and total bytes."""
        ...

    def close(self) -> None:
        """Lets the context go."""
        ...


class PycudaDriver:
    """`Driver` through pycuda."""

    def __init__(self, ordinal: int) -> None:
        """Retains the context; ImportError without pycuda or a driver library."""
        import pycuda.driver  # pyright: ignore[reportMissingImports]

        self._cuda: Any = pycuda.driver
        self.Error = self._cuda.Error
        self._cuda.init()
        device = self._cuda.Device(ordinal)
        context = device.retain_primary_context()
        # Never released: memory is freed in it until the process ends, and pycuda's destructor
        # detaches it as if it were no primary one.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
        context.push()
        # pycuda aborts the process at its end if a context was not popped.
        self._pop = weakref.finalize(self, _pop, context, self._cuda.Error)
        self._stream = self._cuda.Stream(NON_BLOCKING)
        self.stream: int = self._stream.handle
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        self._prepared: dict[int, int] = {}

    def allocate(self, size: int) -> tuple[int, Any]:
        memory = self._cuda.mem_alloc(size)
        return int(memory), memory

    def to_device(self, pointer: int, values: np.ndarray) -> None:
        self._cuda.memcpy_htod_async(pointer, values, self._stream)

    def to_host(self, values: np.ndarray, pointer: int) -> None:
        self._cuda.memcpy_dtoh_async(values, pointer, self._stream)

    def on_device(self, target: int, source: int, size: int) -> None:
        self._cuda.memcpy_dtod_async(target, source, size, self._stream)

    def fill(self, pointer: int, size: int) -> None:
        self._cuda.memset_d8_async(pointer, 0, size, self._stream)

    def mapped(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int]:
        flags = self._cuda.host_alloc_flags.DEVICEMAP
        host = self._cuda.pagelocked_zeros(shape, dtype, mem_flags=flags)
        return host, int(host.base.get_device_pointer())

    def load(self, image: bytes) -> Any:
        return self._cuda.module_from_buffer(image)

    def function(self, module: Any, name: str) -> Any:
        return module.get_function(name)

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        if self._prepared.get(id(kernel)) != len(arguments):
            kernel.prepare("Q" * len(arguments))
            self._prepared[id(kernel)] = len(arguments)
        kernel.prepared_async_call((grid, 1), (block, 1, 1), self._stream, *arguments)

    def wait(self) -> None:
        self._stream.synchronize()

    def memory(self) -> tuple[int, int]:
        return self._cuda.mem_get_info()

    def close(self) -> None:
        self._pop()


def _pop(context: Any, failure: type[BaseException]) -> None:
    with suppress(failure):  # of a thread that is gone
        context.pop()


def open_driver(ordinal: int) -> Driver:
    """Gives the GPU through pycuda, or through cuda-bindings where pycuda is missing.

    Raises:
        DeviceError: Neither is installed, or there is no such GPU.
    """
    try:
        return PycudaDriver(ordinal)
    except ImportError as error:
        missing = brief(error, 120)
    except Exception as error:  # pycuda's own classes are known only once it is imported
        raise DeviceError(f"GPU number {ordinal} cannot be used: {brief(error, 120)}") from error
    try:
        return BindingsDriver(ordinal)
    except DeviceError as error:
        raise DeviceError(
            f"the GPU needs pycuda ({missing}) or cuda-bindings, and a driver; {REMEDY}"
        ) from error
    except BindingsError as error:
        raise DeviceError(f"GPU number {ordinal} cannot be used: {error}; {REMEDY}") from error
