"""A checkpoint's graphs as engines: the modules that export traces, run by PyTorch as they are.

So the runtime's decoding loop and its bound run on a checkpoint before it is exported, by the same
code as on a bundle. Buffers are NumPy arrays that PyTorch shares. Made for measuring, not for
speed. Knows no family: it goes by each graph's tensors and their roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..runtime.bundle.manifest import GraphSpec, TensorSpec
from ..runtime.engines.base import find_spec
from ..runtime.errors import EngineError
from .families.base import ExportGraph, GraphTensor
from .families.shapes import Shape


def _numbers(tensor: GraphTensor, at: Shape) -> TensorSpec:
    sizes = {"block": at.block, "context": at.context}
    shape = tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=shape, role=tensor.role)


def torch_specs(graphs: Sequence[ExportGraph]) -> tuple[GraphSpec, ...]:
    """Describes each graph at each shape it offers of itself; there is no file behind them."""
    return tuple(
        GraphSpec(
            name=graph.name,
            file=f"graphs/{graph.name}.onnx",
            batch=1,
            block=shape.block,
            context=shape.context,
            precision="fp32",
            inputs=tuple(_numbers(tensor, shape) for tensor in graph.inputs),
            outputs=tuple(_numbers(tensor, shape) for tensor in graph.outputs),
        )
        for graph in graphs
        for shape in graph.shapes((), ())
    )


class TorchEngine:
    """One graph at one static shape."""

    def __init__(
        self, module: torch.nn.Module, spec: GraphSpec, slots: dict[int, dict[str, np.ndarray]]
    ) -> None:
        self._module = module
        self._spec = spec
        self._slots = slots
        self._own = {
            tensor.name: np.zeros(tensor.shape, tensor.dtype)
            for tensor in spec.inputs
            if tensor.role != "kv"
        }
        self._outputs = {
            tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in spec.outputs
        }
        self._inputs: dict[str, np.ndarray] = {}

    @property
    def spec(self) -> GraphSpec:
        """The graph's spec."""
        return self._spec

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """Input arrays by tensor name."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """Output arrays by tensor name."""
        return self._outputs

    def select(self, slot: int) -> None:
        """Binds the KV cache of this slot: prefixes of buffers that all shapes share."""
        cache = self._slots[slot]
        self._inputs = {
            tensor.name: cache[tensor.name][: tensor.shape[0]]
            if tensor.role == "kv"
            else self._own[tensor.name]
            for tensor in self._spec.inputs
        }

    def run(self) -> None:
        """Executes the module on the buffers; raises EngineError when PyTorch fails."""
        arguments = [torch.from_numpy(self._inputs[tensor.name]) for tensor in self._spec.inputs]
        try:
            with torch.inference_mode():
                results = self._module(*arguments)
        except (RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"PyTorch: graph {self._spec.name} failed: {reason}") from error
        for tensor, result in zip(self._spec.outputs, results, strict=True):
            np.copyto(self._outputs[tensor.name], result.numpy())


class TorchEngineSet:
    """All graphs of one checkpoint on PyTorch's CPU."""

    name = "torch-cpu"
    device = None
    reason = "a checkpoint is run as it is, without export"

    def __init__(self, graphs: Sequence[ExportGraph]) -> None:
        """Takes the family's graphs, in evaluation mode, at the shapes they offer."""
        self.threads = torch.get_num_threads()
        self._modules = {graph.name: graph.module for graph in graphs}
        self._specs = torch_specs(graphs)
        self._engines: dict[tuple[str, int, int], TorchEngine] = {}
        self._slots: dict[int, dict[str, np.ndarray]] = {}
        self._slot = 0
        self.kv_slot(0)

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """Every graph shape on offer."""
        return self._specs

    def engine(self, name: str, block: int, context: int) -> TorchEngine:
        """Returns the engine of this shape, made on first use; EngineError if unknown."""
        key = (name, block, context)
        if key not in self._engines:
            spec = find_spec(self._specs, *key)
            self._engines[key] = TorchEngine(self._modules[name], spec, self._slots)
        engine = self._engines[key]
        engine.select(self._slot)
        return engine

    def kv_slot(self, index: int) -> None:
        """Selects the KV cache that engines bind; engines in hand change at once."""
        if index not in self._slots:
            self._slots[index] = self._new_cache()
        self._slot = index
        for engine in self._engines.values():
            engine.select(index)

    def close(self) -> None:
        """Releases buffers."""
        self._engines.clear()
        self._slots.clear()

    def _new_cache(self) -> dict[str, np.ndarray]:
        """One buffer per KV input, as long as its longest context."""
        largest: dict[str, TensorSpec] = {}
        for tensor in (item for spec in self._specs for item in spec.inputs if item.role == "kv"):
            known = largest.get(tensor.name)
            if known is None or tensor.shape[0] > known.shape[0]:
                largest[tensor.name] = tensor
        return {name: np.zeros(item.shape, item.dtype) for name, item in largest.items()}
