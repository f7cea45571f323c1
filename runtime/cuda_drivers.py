"""The driver's calls that `cuda.CudaDevice` makes, through either of two bindings.

pycuda is the first choice: it retains the primary context, which TensorRT and ONNX Runtime share.
It is built from source on a board; where it is missing, cuda-bindings, which comes as a wheel and
is there for CUDA graphs and NVRTC anyway, makes the same calls on the same primary context.

Both give plain integers for addresses and handles. Whatever fails raises the class's `Error`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .errors import DeviceError

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default one."""
_DEVICE_MAP = 2
"""CU_MEMHOSTALLOC_DEVICEMAP: kernels see the host memory."""
REMEDY = "run jetson/setup.sh, or choose the engine onnxruntime"


def brief(error: BaseException) -> str:
    """Gives an error's first line."""
    return str(error).split("\n")[0]


def bindings_driver() -> Any:
    """Gives cuda-bindings' driver module; DeviceError if it is not installed."""
    try:
        from cuda.bindings import driver  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"CUDA graphs need the package cuda-bindings: {brief(error)}; {REMEDY}"
        ) from error
    return driver


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
        self._context = device.retain_primary_context()
        self._context.push()
        self._stream = self._cuda.Stream(_NON_BLOCKING)
        self.stream: int = self._stream.handle
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        self._prepared: dict[int, int] = {}

    def allocate(self, size: int) -> tuple[int, Any]:
        """See Driver."""
        memory = self._cuda.mem_alloc(size)
        return int(memory), memory

    def to_device(self, pointer: int, values: np.ndarray) -> None:
        """See Driver."""
        self._cuda.memcpy_htod_async(pointer, values, self._stream)

    def to_host(self, values: np.ndarray, pointer: int) -> None:
        """See Driver."""
        self._cuda.memcpy_dtoh_async(values, pointer, self._stream)

    def on_device(self, target: int, source: int, size: int) -> None:
        """See Driver."""
        self._cuda.memcpy_dtod_async(target, source, size, self._stream)

    def fill(self, pointer: int, size: int) -> None:
        """See Driver."""
        self._cuda.memset_d8_async(pointer, 0, size, self._stream)

    def mapped(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int]:
        """See Driver."""
        flags = self._cuda.host_alloc_flags.DEVICEMAP
        host = self._cuda.pagelocked_zeros(shape, dtype, mem_flags=flags)
        return host, int(host.base.get_device_pointer())

    def load(self, image: bytes) -> Any:
        """See Driver."""
        return self._cuda.module_from_buffer(image)

    def function(self, module: Any, name: str) -> Any:
        """See Driver."""
        return module.get_function(name)

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        """See Driver."""
        if self._prepared.get(id(kernel)) != len(arguments):
            kernel.prepare("Q" * len(arguments))
            self._prepared[id(kernel)] = len(arguments)
        kernel.prepared_async_call((grid, 1), (block, 1, 1), self._stream, *arguments)

    def wait(self) -> None:
        """See Driver."""
        self._stream.synchronize()

    def memory(self) -> tuple[int, int]:
        """See Driver."""
        return self._cuda.mem_get_info()

    def close(self) -> None:
        """See Driver."""
        self._context.pop()


class BindingsError(Exception):
    """A call of cuda-bindings that failed."""


class _Owned:
    """Frees device or host memory when nobody refers to it any more."""

    def __init__(self, free: Any, pointer: Any) -> None:
        self._free, self._pointer = free, pointer

    def __del__(self) -> None:
        self._free(self._pointer)  # at exit the driver may be gone: its status tells nothing


class BindingsDriver:
    """`Driver` through cuda-bindings."""

    Error = BindingsError

    def __init__(self, ordinal: int) -> None:
        """Retains the context; DeviceError without cuda-bindings, Error without a driver."""
        driver = self._driver = bindings_driver()
        try:
            self._do("cuInit", 0)
        except RuntimeError as error:  # the library itself cannot be opened
            raise BindingsError(brief(error)) from error
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
        self._stream = self._do("cuStreamCreate", _NON_BLOCKING)
        self.stream = int(self._stream)

    def _do(self, name: str, *arguments: Any) -> Any:
        """Makes a call and gives its one result."""
        status, *results = getattr(self._driver, name)(*arguments)
        if int(status):
            raise BindingsError(f"{name} gave {status.name}")
        return results[0] if results else None

    def allocate(self, size: int) -> tuple[int, Any]:
        """See Driver."""
        pointer = self._do("cuMemAlloc", size)
        return int(pointer), _Owned(self._driver.cuMemFree, pointer)

    def to_device(self, pointer: int, values: np.ndarray) -> None:
        """See Driver; pageable memory is copied aside before the call returns."""
        self._do("cuMemcpyHtoDAsync", pointer, values.ctypes.data, values.nbytes, self._stream)

    def to_host(self, values: np.ndarray, pointer: int) -> None:
        """See Driver."""
        self._do("cuMemcpyDtoHAsync", values.ctypes.data, pointer, values.nbytes, self._stream)

    def on_device(self, target: int, source: int, size: int) -> None:
        """See Driver."""
        self._do("cuMemcpyDtoDAsync", target, source, size, self._stream)

    def fill(self, pointer: int, size: int) -> None:
        """See Driver."""
        self._do("cuMemsetD8Async", pointer, 0, size, self._stream)

    def mapped(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int]:
        """See Driver."""
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        pointer = self._do("cuMemHostAlloc", size, _DEVICE_MAP)
        memory: Any = (ctypes.c_char * size).from_address(int(pointer))
        # The array refers to the buffer, and the buffer to what frees it.
        memory.owner = _Owned(self._driver.cuMemFreeHost, pointer)
        host = np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
        host[...] = 0
        return host, int(self._do("cuMemHostGetDevicePointer", pointer, 0))

    def load(self, image: bytes) -> Any:
        """See Driver."""
        return self._do("cuModuleLoadData", image)

    def function(self, module: Any, name: str) -> Any:
        """See Driver."""
        return self._do("cuModuleGetFunction", module, name.encode())

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        """See Driver."""
        values = (tuple(arguments), (ctypes.c_uint64,) * len(arguments))
        shape = (grid, 1, 1, block, 1, 1)
        self._do("cuLaunchKernel", kernel, *shape, 0, self._stream, values, 0)

    def wait(self) -> None:
        """See Driver."""
        self._do("cuStreamSynchronize", self._stream)

    def memory(self) -> tuple[int, int]:
        """See Driver."""
        status, free, total = self._driver.cuMemGetInfo()
        if int(status):
            raise BindingsError(f"cuMemGetInfo gave {status.name}")
        return int(free), int(total)

    def close(self) -> None:
        """See Driver."""


def open_driver(ordinal: int) -> Driver:
    """Gives the GPU through pycuda, or through cuda-bindings where pycuda is missing.

    Raises:
        DeviceError: Neither is installed, or there is no such GPU.
    """
    try:
        return PycudaDriver(ordinal)
    except ImportError as error:
        missing = brief(error)
    except Exception as error:  # pycuda's own classes are known only once it is imported
        raise DeviceError(f"GPU number {ordinal} cannot be used: {brief(error)}") from error
    try:
        return BindingsDriver(ordinal)
    except DeviceError as error:
        raise DeviceError(
            f"the GPU needs pycuda ({missing}) or cuda-bindings, and a driver; {REMEDY}"
        ) from error
    except BindingsError as error:
        raise DeviceError(f"GPU number {ordinal} cannot be used: {error}; {REMEDY}") from error
