"""ONNX graphs in memory: small edits, inferred types, and sessions that run them.

A graph is an `onnx_ir.Model`. Its weights are arrays (views of a checkpoint's parameters, as
traced) that clones share, so a copy of a graph copies no weight, and no edit passes through one
protobuf message, which holds at most 2 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..runtime.engines.onnxruntime import import_backend

Models = Mapping[str, ir.Model]
"""By graph name."""
LARGE_BYTES = 1 << 20
"""From this size on a weight is left out where only types and shapes are looked at."""


def array_of(value: ir.Value) -> np.ndarray:
    """Returns an initialiser's content."""
    assert value.const_value is not None
    return value.const_value.numpy()


def is_matrix(value: ir.Value | None) -> bool:
    """Returns whether a value is an initialiser with two axes."""
    return value is not None and value.is_initializer() and rank_of(value) == 2


def rank_of(value: ir.Value) -> int:
    """Returns the number of axes of an initialiser."""
    assert value.const_value is not None
    return len(value.const_value.shape)


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    """Returns every value of a graph by name: inputs, initialisers and computed ones."""
    graph = model.graph
    found = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    return found | {str(value.name): value for node in graph for value in node.outputs}


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Returns the initialiser of this name, added if the graph does not have it."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]


def lazy_constant(
    graph: ir.Graph,
    name: str,
    make: Callable[[], np.ndarray],
    dtype: ir.DataType,
    shape: Sequence[int],
) -> ir.Value:
    """Adds an initialiser that is computed whenever it is read, and kept nowhere."""
    tensor = ir.LazyTensor(
        lambda: ir.tensor(make(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]


def make_node(
    op: str, inputs: Sequence[ir.Value | None], output: str, **attributes: Any
) -> ir.Node:
    """Makes a node with one output, whose name is the node's too."""
    return ir.node(op, inputs, attributes or None, outputs=[ir.Value(name=output)], name=output)


def cast(value: ir.Value, output: str, dtype: ir.DataType) -> ir.Node:
    """Makes a Cast."""
    return make_node("Cast", [value], output, to=int(dtype))


def replace_node(old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Puts nodes in the place of one; the last of them computes its output, under its name."""
    assert old.graph is not None
    ir.convenience.replace_nodes_and_values(
        old.graph, old, [old], new, old.outputs, new[-1].outputs
    )


def insert_behind(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Adds nodes directly behind the one that makes a value; first, where none does."""
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(maker, nodes)


def remove_unused(model: ir.Model) -> None:
    """Removes nodes and initialisers that no output depends on, in place."""
    RemoveUnusedNodesPass()(model)


def num_bytes(model: ir.Model) -> int:
    """Returns the bytes of a graph's weights."""
    items = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in items if value.const_value is not None)


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """Returns the graph as a protobuf in which large weights are inputs instead."""
    light = model.clone()
    for value in list(light.graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None
        assert value.name is not None
        if tensor.nbytes >= LARGE_BYTES and len(tensor.shape) > 1:
            value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
            del light.graph.initializers[value.name]
            value.const_value = None
            light.graph.inputs.append(value)
    return ir.to_proto(light)


def value_types(model: ir.Model) -> dict[str, ir.DataType]:
    """Infers the type of every value, strictly.

    Raises:
        onnx.shape_inference.InferenceError: Types or shapes contradict each other.
    """
    graph = onnx.shape_inference.infer_shapes(
        without_weights(model), check_type=True, strict_mode=True
    ).graph
    found = {
        item.name: ir.DataType(item.type.tensor_type.elem_type)
        for item in (*graph.input, *graph.output, *graph.value_info)
    }
    return found | {item.name: ir.DataType(item.data_type) for item in graph.initializer}


def save(model: ir.Model, path: Path) -> None:
    """Writes a graph, with its weights in a file beside it."""
    ir.save(model, path, external_data=f"{path.stem}.data")


def open_session(model: ir.Model, names: Iterable[str] = (), threads: int = 1) -> Any:
    """Opens an ONNX Runtime session of a graph.

    Args:
        names: Computed values to return beside the graph's own outputs.
    """
    backend = import_backend()
    shown = model.clone()
    values, known = values_of(shown), {value.name for value in shown.graph.outputs}
    shown.graph.outputs.extend(values[name] for name in dict.fromkeys(names) if name not in known)
    options = backend.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with TemporaryDirectory(prefix="dlm-calibrate-") as folder:
        path = Path(folder) / "graph.onnx"
        save(shown, path)
        return backend.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )


def in_order(model: ir.Model, names: Iterable[str]) -> list[str]:
    """Sorts values by when the graph computes them; its inputs come first."""
    made = (value.name for node in model.graph for value in node.outputs)
    place = {name: number for number, name in enumerate(made)}
    return sorted(dict.fromkeys(names), key=lambda name: place.get(name, -1))
