"""The driver's calls through cuda-bindings, which also has what pycuda lacks: CUDA graphs.

Every call gives a status first. Which of them are made, and with how many arguments, is held
against the releases of cuda-bindings by tests/runtime/gpu/test_cuda_calls.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DeviceError, brief

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default one."""
DEVICE_MAP = 2
"""CU_MEMHOSTALLOC_DEVICEMAP: kernels see the host memory."""
REMEDY = "run jetson/setup.sh, or choose the engine onnxruntime"


def bindings_driver() -> Any:
    """Gives cuda-bindings' driver module; DeviceError if it is not installed."""
    try:
        from cuda.bindings import driver  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"CUDA graphs need the package cuda-bindings: {brief(error, 120)}; {REMEDY}"
        ) from error
    return driver


class BindingsError(Exception):
    """A call of cuda-bindings that failed."""


class _Owned:
    """Frees device or host memory with its last reference."""

    def __init__(self, free: Any, pointer: Any) -> None:
        self._free, self._pointer = free, pointer

    def __del__(self) -> None:
        self._free(self._pointer)  # at exit the driver may be gone: its status means nothing


class BindingsDriver:
    """`Driver` through cuda-bindings."""

    Error = BindingsError

    def __init__(self, ordinal: int) -> None:
        """Retains the context; DeviceError without cuda-bindings, Error without a driver."""
        driver = self._driver = bindings_driver()
        try:
            self._do("cuInit", 0)
        except RuntimeError as error:  # the library itself cannot be opened
            raise BindingsError(brief(error, 120)) from error
        device = self._do("cuDeviceGet", ordinal)
        # Never released: memory is freed in it until the process ends.
        self._do("cuCtxSetCurrent", self._do("cuDevicePrimaryCtxRetain", device))
        self.name: str = self._do("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        kinds = driver.CUdevice_attribute
        self.capability: tuple[int, int] = (
            self._do(
                "cuDeviceGetAttribute",
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                device,
            ),
            self._do(
                "cuDeviceGetAttribute",
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                device,
            ),
        )
        self._stream = self._do("cuStreamCreate", NON_BLOCKING)
        self.stream = int(self._stream)

    def _do(self, name: str, *arguments: Any) -> Any:
        """Makes a call and gives its one result."""
        status, *results = getattr(self._driver, name)(*arguments)
        if int(status):
            raise BindingsError(f"{name} gave {status.name}")
        return results[0] if results else None

    def allocate(self, size: int) -> tuple[int, Any]:
        pointer = self._do("cuMemAlloc", size)
        return int(pointer), _Owned(self._driver.cuMemFree, pointer)

    def to_device(self, pointer: int, values: np.ndarray) -> None:
        """Enqueues the copy; the driver copies pageable memory aside before the call returns."""
        self._do("cuMemcpyHtoDAsync", pointer, values.ctypes.data, values.nbytes, self._stream)

    def to_host(self, values: np.ndarray, pointer: int) -> None:
        self._do("cuMemcpyDtoHAsync", values.ctypes.data, pointer, values.nbytes, self._stream)

    def on_device(self, target: int, source: int, size: int) -> None:
        self._do("cuMemcpyDtoDAsync", target, source, size, self._stream)

    def fill(self, pointer: int, size: int) -> None:
        self._do("cuMemsetD8Async", pointer, 0, size, self._stream)

    def mapped(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int]:
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        pointer = self._do("cuMemHostAlloc", size, DEVICE_MAP)
        memory: Any = (ctypes.c_char * size).from_address(int(pointer))
        # The array refers to the buffer, and the buffer to what frees it.
        memory.owner = _Owned(self._driver.cuMemFreeHost, pointer)
        host = np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
        host[...] = 0
        return host, int(self._do("cuMemHostGetDevicePointer", pointer, 0))

    def load(self, image: bytes) -> Any:
        return self._do("cuModuleLoadData", image)

    def function(self, module: Any, name: str) -> Any:
        return self._do("cuModuleGetFunction", module, name.encode())

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        values = (tuple(arguments), (ctypes.c_uint64,) * len(arguments))
        shape = (grid, 1, 1, block, 1, 1)
        self._do("cuLaunchKernel", kernel, *shape, 0, self._stream, values, 0)

    def wait(self) -> None:
        self._do("cuStreamSynchronize", self._stream)

    def memory(self) -> tuple[int, int]:
        status, free, total = self._driver.cuMemGetInfo()
        if int(status):
            raise BindingsError(f"cuMemGetInfo gave {status.name}")
        return int(free), int(total)

    def close(self) -> None: ...
