"""The GPU through its bindings: the only file that imports them.

pycuda gives memory, the stream and modules; it retains the primary context, which TensorRT and
ONNX Runtime then share. cuda-bindings gives NVRTC and CUDA graphs, which pycuda lacks, on the same
raw handles.

`CudaDevice` and `CapturedStep` have not run on hardware yet: the tests run the kernels on a CPU,
through another `Device`, and compile them, by NVRTC where it is present. So these two hold no more
than the calls themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .device import DeviceArray
from .errors import DeviceError
from .kernel_cache import compile_cached

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default one."""
_REMEDY = "run jetson/setup.sh, or choose the engine onnxruntime"


def _brief(error: Exception) -> str:
    """Gives an error's first line."""
    return str(error).split("\n")[0]


def _driver() -> Any:
    try:
        from cuda.bindings import driver  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"CUDA graphs need the package cuda-bindings: {_brief(error)}; {_REMEDY}"
        ) from error
    return driver


def _pycuda() -> Any:
    try:
        import pycuda.driver  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DeviceError(
            f"the GPU needs pycuda and a driver: {_brief(error)}; {_REMEDY}"
        ) from error
    return pycuda.driver


def _nvrtc() -> tuple[Any, str]:
    """Gives NVRTC's binding and its version."""
    try:
        from cuda.bindings import nvrtc  # pyright: ignore[reportMissingImports]

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"compiling kernels needs cuda-bindings and the CUDA toolkit's NVRTC: "
            f"{_brief(error)}; {_REMEDY}"
        ) from error
    return nvrtc, f"{major}.{minor}"


def _checked(result: Sequence[Any], what: str) -> Any:
    """Gives the one value of a cuda-bindings result; DeviceError unless the call succeeded."""
    if int(result[0]):
        raise DeviceError(f"{what} failed with {result[0].name}; see the driver's log, dmesg")
    return result[1] if len(result) > 1 else None


def compile_kernels(source: Path, capability: tuple[int, int]) -> bytes:
    """Compiles a `.cu` file to a cubin, or finds it compiled; needs no GPU.

    Raises:
        DeviceError: NVRTC is missing, or refuses the source.
    """
    nvrtc, version = _nvrtc()

    def compile_(text: bytes, headers: Mapping[str, bytes]) -> bytes:
        names = [name.encode() for name in headers]
        program = _checked(
            nvrtc.nvrtcCreateProgram(
                text, source.name.encode(), len(names), list(headers.values()), names
            ),
            f"reading {source.name}",
        )
        options = [b"--gpu-architecture=sm_%d%d" % capability, b"--std=c++17"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            raise DeviceError(f"NVRTC cannot compile {source.name}: {_log(nvrtc, program)}")
        image = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program), "measuring an image")
        _checked(nvrtc.nvrtcGetCUBIN(program, image), "reading an image")
        _checked(nvrtc.nvrtcDestroyProgram(program), "releasing NVRTC's program")
        return image

    return compile_cached(source, version, capability, compile_)


def _log(nvrtc: Any, program: Any) -> str:
    """Gives the first line that NVRTC complained in."""
    text = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program), "measuring NVRTC's log")
    _checked(nvrtc.nvrtcGetProgramLog(program, text), "reading NVRTC's log")
    return text.decode(errors="replace").strip(" \n\0").split("\n")[0]


class CapturedStep:
    """`Step` as an instantiated CUDA graph."""

    def __init__(self, driver: Any, graph: Any, stream: int) -> None:
        self._driver, self._stream = driver, stream
        self._graph = _checked(driver.cuGraphInstantiate(graph, 0), "instantiating a CUDA graph")

    def replay(self) -> None:
        """See Step."""
        _checked(self._driver.cuGraphLaunch(self._graph, self._stream), "launching a CUDA graph")


class CudaDevice:
    """`Device` on a GPU. Use it from the thread that made it; `close` it there."""

    def __init__(self, ordinal: int = 0) -> None:
        """Retains a GPU's primary context; DeviceError if there is none or a binding lacks."""
        self._cuda = _pycuda()
        try:
            self._cuda.init()
            device = self._cuda.Device(ordinal)
            self._context = device.retain_primary_context()
            self._context.push()
            self._stream = self._cuda.Stream(_NON_BLOCKING)
        except self._cuda.Error as error:
            raise DeviceError(f"GPU number {ordinal} cannot be used: {error}") from error
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        self._modules: list[Any] = []

    @property
    def stream(self) -> int:
        """See Device."""
        return self._stream.handle

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """See Device."""
        kind = np.dtype(dtype)
        size = max(1, int(np.prod(shape)) * kind.itemsize)
        try:
            memory = self._cuda.mem_alloc(size)
        except self._cuda.Error as error:
            raise DeviceError(
                f"the GPU has no {size / 2**20:.1f} MiB left ({error}); "
                "take a smaller block or context, or close other programs"
            ) from error
        return DeviceArray(pointer=int(memory), shape=tuple(shape), dtype=kind, owner=memory)

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        """See Device."""
        values = np.ascontiguousarray(source, target.dtype)
        assert values.nbytes == target.nbytes
        self._cuda.memcpy_htod_async(target.pointer, values, self._stream)

    def download(self, source: DeviceArray) -> np.ndarray:
        """See Device."""
        values = np.empty(source.shape, source.dtype)
        self._cuda.memcpy_dtoh_async(values, source.pointer, self._stream)
        self.synchronize()
        return values

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """See Device."""
        assert target.nbytes == source.nbytes
        self._cuda.memcpy_dtod_async(target.pointer, source.pointer, target.nbytes, self._stream)

    def zero(self, target: DeviceArray) -> None:
        """See Device."""
        self._cuda.memset_d8_async(target.pointer, 0, target.nbytes, self._stream)

    def mapped(self, shape: Sequence[int], dtype: Any) -> tuple[np.ndarray, int]:
        """See Device."""
        flags = self._cuda.host_alloc_flags.DEVICEMAP
        host = self._cuda.pagelocked_zeros(tuple(shape), dtype, mem_flags=flags)
        return host, int(host.base.get_device_pointer())

    def kernels(self, source: Path, names: Sequence[str]) -> dict[str, Any]:
        """See Device."""
        try:
            module = self._cuda.module_from_buffer(compile_kernels(source, self.capability))
        except self._cuda.Error as error:
            raise DeviceError(f"the driver refuses {source.name}'s image: {error}") from error
        self._modules.append(module)
        return {name: module.get_function(name) for name in names}

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        """See Device."""
        kernel.prepare("Q" * len(arguments))
        kernel.prepared_async_call((grid, 1), (block, 1, 1), self._stream, *arguments)

    def capture(self, run: Callable[[], None]) -> CapturedStep:
        """See Device."""
        driver, stream = _driver(), self.stream
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(stream, mode), "beginning to capture a step")
        try:
            run()
        finally:
            ended = driver.cuStreamEndCapture(stream)
        return CapturedStep(driver, _checked(ended, "capturing a step"), stream)

    def synchronize(self) -> None:
        """See Device."""
        try:
            self._stream.synchronize()
        except self._cuda.Error as error:
            raise DeviceError(f"work on the GPU failed: {error}; see dmesg") from error

    def close(self) -> None:
        """Lets the context go; arrays must not be used afterwards."""
        self._modules.clear()
        self._context.pop()
