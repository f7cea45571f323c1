"""A `Device` whose kernels are the same sources, compiled as C++ and run on the CPU.

Memory is host memory. Either every call ends before it returns, or, `asynchronous`, a thread works
them off in order some time later, as a stream does: then whoever reads or reuses host memory too
early is found out. A captured step records its calls and replays them. What would cost time on a
GPU is counted.
"""

import ctypes
import hashlib
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dlm_edge.runtime.cache import cache_root, write_beside
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu.compile import include_folders, source_hash
from dlm_edge.runtime.gpu.device import DeviceArray, Immediate

HEADER = Path(__file__).with_name("cuda.hpp")
COMPILER = "g++"
# Contraction off: nvcc fuses multiply and add where it likes, and no test may rest on that. What a
# later compiler warns of is no fault of the kernels.
OPTIONS = (
    "-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-gnu-unique",
    "-Wl,-Bsymbolic", "-w",
)  # fmt: skip


@cache
def build_folder() -> Path:
    """Where this process finds what it compiled, whatever a test makes of the user's cache."""
    folder = cache_root() / "emulated"
    folder.mkdir(exist_ok=True)
    return folder


def build(source: Path) -> Path:
    """Compiles a `.cu` file as a shared library, once per content."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} here to compile the kernels with")
    digest = hashlib.sha256(HEADER.read_bytes() + source_hash(source).encode()).hexdigest()
    folder = build_folder()
    path = folder / f"{source.stem}-{digest}.so"
    if not path.is_file():
        partial = folder / f"{path.name}.{id(path)}"
        done = subprocess.run(
            [COMPILER, *OPTIONS, *(f"-I{folder}" for folder in include_folders(source)),
             "-include", str(HEADER), "-x", "c++", str(source),
             "-o", str(partial)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        write_beside(path, partial.read_bytes())
        partial.unlink()
    return path


class RecordedStep:
    def __init__(self, device: "EmulatedDevice", calls: list[Callable[[], None]]) -> None:
        self._device, self._calls = device, calls

    def replay(self) -> None:
        self._device.counts["replays"] += 1
        for call in self._calls:
            self._device.enqueue(call)


class EmulatedDevice(Immediate):
    """`Device` on the CPU."""

    name = "emulation"
    stream = 77

    def __init__(
        self, *, downwards: bool = False, asynchronous: bool = False, capacity: int = 1 << 33
    ) -> None:
        self.capacity, self._allocated = capacity, 0
        self._kept: list[np.ndarray] = []
        self._downwards = downwards
        self._recording: list[Callable[[], None]] | None = None
        self._queue: queue.SimpleQueue | None = queue.SimpleQueue() if asynchronous else None
        self._failure: BaseException | None = None
        self.counts = dict.fromkeys(
            ("allocations", "launches", "copies", "uploads", "downloads", "waits", "replays",
             "captures", "bytes_downloaded"), 0,
        )  # fmt: skip
        if asynchronous:
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        assert self._queue is not None
        while True:
            call = self._queue.get()
            time.sleep(0.0005)  # so that the host is always ahead
            try:
                call()
            except BaseException as error:  # told at the next synchronisation
                self._failure = error

    def enqueue(self, call: Callable[[], None]) -> None:
        """Does something in the stream's order, as a kernel or an engine's run."""
        if self._recording is not None:
            self._recording.append(call)
        elif self._queue is not None:
            self._queue.put(call)
        else:
            call()

    def _drain(self) -> None:
        if self._queue is not None:
            done = threading.Event()
            self._queue.put(done.set)
            done.wait()
        if self._failure is not None:
            raise DeviceError(f"work on the GPU failed: {self._failure}")

    def view(self, array: DeviceArray) -> np.ndarray:
        kind = ctypes.c_char * array.nbytes
        return np.frombuffer(kind.from_address(array.pointer), array.dtype).reshape(array.shape)

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        self.counts["allocations"] += 1
        kind = np.dtype(dtype)
        # Not zeroed: what nobody writes is poison. Aligned as an allocator of a GPU aligns.
        size = int(np.prod(shape)) * kind.itemsize
        if self._allocated + size > self.capacity:
            raise DeviceError(f"the GPU has no {size / 2**20:.1f} MiB left in one piece")
        self._allocated += size  # freed memory is not counted: enough for a test of the limit
        memory = np.full(size + 256, 0xA5, np.uint8)
        if self._queue is not None:
            self._kept.append(memory)  # a GPU frees once all that was enqueued has run
        pointer = -(-memory.ctypes.data // 256) * 256
        return DeviceArray(pointer=pointer, shape=tuple(shape), dtype=kind, owner=memory)

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        assert self._recording is None, "a copy from the host cannot be captured"
        assert np.asarray(source).size == target.size
        self.counts["uploads"] += 1
        values = np.array(source, target.dtype).reshape(target.shape)
        self.enqueue(lambda: self.view(target).__setitem__(..., values))

    def download(self, source: DeviceArray) -> np.ndarray:
        assert self._recording is None, "the host cannot wait while a step is captured"
        self.counts["downloads"] += 1
        self.counts["bytes_downloaded"] += source.nbytes
        self._drain()
        return self.view(source).copy()

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        assert target.nbytes == source.nbytes

        def run() -> None:
            self.counts["copies"] += 1
            ctypes.memmove(target.pointer, source.pointer, target.nbytes)

        self.enqueue(run)

    def zero(self, target: DeviceArray) -> None:
        self.enqueue(lambda: ctypes.memset(target.pointer, 0, target.nbytes) and None)

    def mapped(self, shape: Sequence[int], dtype: Any) -> tuple[np.ndarray, int]:
        self.counts["allocations"] += 1
        host = np.zeros(shape, dtype)
        return host, host.ctypes.data

    def kernels(self, source: Path, names: Sequence[str]) -> dict[str, Any]:
        library = ctypes.CDLL(str(build(source)))
        return {name: (library, ctypes.cast(library[name], ctypes.c_void_p)) for name in names}

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        library, function = kernel
        values = (ctypes.c_uint64 * len(arguments))(*arguments)

        def run() -> None:
            self.counts["launches"] += 1
            if library.emulate(function, grid, block, values, len(arguments), self._downwards):
                raise DeviceError("threads of a kernel wait for each other for ever")

        self.enqueue(run)

    def capture(self, run: Callable[[], None]) -> RecordedStep:
        self.counts["captures"] += 1
        self._recording = []
        try:
            run()
            return RecordedStep(self, self._recording)
        finally:
            self._recording = None

    def synchronize(self) -> None:
        self.counts["waits"] += 1
        self._drain()

    def memory(self) -> tuple[int, int]:
        return self.capacity - self._allocated, self.capacity

    def close(self) -> None:
        self._drain()
