"""A checkpoint's graphs as engines: the modules that export traces, run by PyTorch as they are.

So the runtime's decoding loop and its bound run on a checkpoint before it is exported, by the same
code as on a bundle. Buffers are NumPy arrays that PyTorch shares. Made for measuring, not for
speed. Knows no family: it goes by each graph's tensors and their roles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..runtime.bundle.manifest import GraphKey, GraphSpec
from ..runtime.engines.base import find_spec
from ..runtime.engines.buffers import Buffers, host_buffers
from ..runtime.errors import EngineError, brief
from ..runtime.process import usable_cores
from .families.base import ExportGraph

MAX_THREADS = 8
"""PyTorch's threads at most, unless given: a run is small."""


def idle_cores() -> int:
    """Gives how many cores this process may use that nothing else is using now, 1 to 8.

    PyTorch's threads wait for each other at every operation, so one that gets no core holds up all:
    on a busy machine of two cores 20 tokens took 21 s with two threads, 0.33 s with one.
    """
    cores = min(usable_cores(), MAX_THREADS)
    try:
        busy = os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return cores
    return max(1, min(cores, round((os.cpu_count() or cores) - busy)))


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Has PyTorch compute with so many threads; what the process had comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchEngine:
    """One graph at one static shape."""

    def __init__(
        self,
        module: torch.nn.Module,
        spec: GraphSpec,
        buffers: Buffers[np.ndarray],
        threads: int,
    ) -> None:
        self._module, self._threads, self.spec = module, threads, spec
        self.inputs = {tensor.name: buffers.view(tensor, spec) for tensor in spec.inputs}
        self.outputs = {tensor.name: buffers.view(tensor, spec) for tensor in spec.outputs}

    def run(self) -> None:
        """Executes the module on the buffers; raises EngineError when PyTorch fails."""
        arguments = [torch.from_numpy(self.inputs[tensor.name]) for tensor in self.spec.inputs]
        try:
            with torch.inference_mode(), torch_threads(self._threads):
                results = self._module(*arguments)
        except (RuntimeError, IndexError) as error:
            reason = brief(error, 200)
            raise EngineError(f"PyTorch: graph {self.spec.name} failed: {reason}") from error
        for tensor, result in zip(self.spec.outputs, results, strict=True):
            np.copyto(self.outputs[tensor.name], result.numpy())


class TorchEngineSet:
    """All graphs of one checkpoint on PyTorch's CPU."""

    name = "torch-cpu"
    device = None
    reason = "a checkpoint is run as it is, without export"

    def __init__(self, graphs: Sequence[ExportGraph], threads: int | None = None) -> None:
        """Takes the family's graphs, in evaluation mode, at the shapes they offer."""
        self.threads = idle_cores() if threads is None else threads
        self._modules = {graph.name: graph.module for graph in graphs}
        self.specs = tuple(
            spec for graph in graphs for spec in graph.specs(graph.shapes((), ()), precision="fp32")
        )
        self._engines: dict[GraphKey, TorchEngine] = {}
        self._buffers = host_buffers(self.specs)

    def engine(self, spec: GraphSpec) -> TorchEngine:
        key = spec.key
        if key not in self._engines:
            found = find_spec(self.specs, spec)
            self._engines[key] = TorchEngine(
                self._modules[spec.name], found, self._buffers, self.threads
            )
        return self._engines[key]

    def close(self) -> None:
        self._engines.clear()
        self._buffers.clear()
