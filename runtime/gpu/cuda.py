"""The GPU: memory, one stream, kernels and captured steps.

Calls go through `drivers.py`, kernels through `compile.py`. CUDA graphs, which pycuda lacks,
are cuda-bindings' in either case, on the same raw handles.

This file, `drivers.py` and `bindings.py` have not run on hardware yet: the tests
run the kernels on a CPU through another `Device`, and this one on a stand-in for the driver. So it
holds no more than the calls themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError
from .bindings import bindings_driver
from .compile import checked, compile_kernels
from .device import DeviceArray, Immediate
from .drivers import Driver, open_driver

_MIB = 1 << 20


class CapturedStep:
    """`Step` as an instantiated CUDA graph."""

    def __init__(self, driver: Any, graph: Any, stream: int) -> None:
        """Instantiates a captured graph, which is not needed afterwards."""
        self._driver, self._stream = driver, stream
        self._graph: Any = None
        try:
            self._graph = checked(driver.cuGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        finally:
            driver.cuGraphDestroy(graph)

    def replay(self) -> None:
        checked(self._driver.cuGraphLaunch(self._graph, self._stream), "launching a CUDA graph")

    def __del__(self) -> None:
        if self._graph is not None:
            self._driver.cuGraphExecDestroy(self._graph)


class CudaDevice(Immediate):
    """`Device` on a GPU. Use it from the thread that made it; `close` it there."""

    def __init__(
        self,
        ordinal: int = 0,
        driver: Driver | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Retains a GPU's primary context; DeviceError if there is none or a binding lacks.

        Args:
            driver: How to call it; None: pycuda, or cuda-bindings where that is missing.
        """
        self._driver = driver or open_driver(ordinal)
        self.name = self._driver.name
        self.capability = self._driver.capability
        self._modules: list[Any] = []
        self._note, self._compiles = note, False

    @property
    def stream(self) -> int:
        return self._driver.stream

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns a binding's errors into ours."""
        try:
            yield
        except self._driver.Error as error:
            raise DeviceError(f"{what}: {error}; see the driver's log, dmesg") from error

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        kind = np.dtype(dtype)
        size = max(1, int(np.prod(shape)) * kind.itemsize)
        try:
            pointer, owner = self._driver.allocate(size)
        except self._driver.Error as error:
            raise DeviceError(
                f"the GPU has no {size / _MIB:.1f} MiB left in one piece ({error}); "
                "take a smaller block or context, or close other programs"
            ) from error
        return DeviceArray(pointer=pointer, shape=tuple(shape), dtype=kind, owner=owner)

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        values = np.ascontiguousarray(source, target.dtype)
        assert values.nbytes == target.nbytes
        with self._told("copying to the GPU failed"):
            self._driver.to_device(target.pointer, values)

    def download(self, source: DeviceArray) -> np.ndarray:
        values = np.empty(source.shape, source.dtype)
        with self._told("copying from the GPU failed"):
            self._driver.to_host(values, source.pointer)
        self.synchronize()
        return values

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        assert target.nbytes == source.nbytes
        with self._told("copying on the GPU failed"):
            self._driver.on_device(target.pointer, source.pointer, target.nbytes)

    def zero(self, target: DeviceArray) -> None:
        with self._told("clearing memory of the GPU failed"):
            self._driver.fill(target.pointer, target.nbytes)

    def mapped(self, shape: Sequence[int], dtype: Any) -> tuple[np.ndarray, int]:
        with self._told("the GPU maps no host memory"):
            return self._driver.mapped(tuple(shape), np.dtype(dtype))

    def kernels(self, source: Path, names: Sequence[str]) -> dict[str, Any]:
        image = compile_kernels(source, self.capability, self._say_once)
        try:
            module = self._driver.load(image)
            self._modules.append(module)
            return {name: self._driver.function(module, name) for name in names}
        except self._driver.Error as error:
            major, minor = self.capability
            raise DeviceError(
                f"the driver refuses {source.name}'s image for sm_{major}{minor} ({error}): its "
                "CUDA toolkit is newer than the driver; update JetPack or the driver"
            ) from error

    def _say_once(self) -> None:
        if not self._compiles:
            self._compiles = True
            self._note("compiling kernels for this GPU, once, which takes a minute on a board")

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        with self._told("launching a kernel failed"):
            self._driver.launch(kernel, grid, block, arguments)

    def capture(self, run: Callable[[], None]) -> CapturedStep:
        driver, stream = bindings_driver(), self.stream
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(driver.cuStreamBeginCapture(stream, mode), "beginning to capture a step")
        try:
            run()
        finally:
            ended = driver.cuStreamEndCapture(stream)
        return CapturedStep(driver, checked(ended, "capturing a step"), stream)

    def synchronize(self) -> None:
        with self._told("work on the GPU failed"):
            self._driver.wait()

    def memory(self) -> tuple[int, int]:
        with self._told("the GPU does not report its memory"):
            return self._driver.memory()

    def close(self) -> None:
        self._modules.clear()
        self._driver.close()
