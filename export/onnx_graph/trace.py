"""PyTorch module to one ONNX graph whose named dimensions stay symbolic.

The exporter is torch.export's (`dynamo=True`): half the nodes of the TorchScript one for the block
step (368 against 658 before ONNX Runtime's own passes, the same ops after them). What it writes
beside the graph (stack traces, with the paths of the machine) is taken out, so that equal weights
give equal bytes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch

from ...runtime.errors import EngineError, brief
from ...train.families.base import ExportGraph
from ...train.families.shapes import Shape
from .names import name_weights
from .outside import PLACE, Arrays, fill
from .sharing import SHARED_BYTES, share_transposed

OPSET = 20
"""Highest that TensorRT 10.3's parser reads."""
IR_VERSION = 10


def example_inputs(graph: ExportGraph, dims: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
    """Returns zeros of each input's shape and dtype."""
    return tuple(
        torch.zeros(tensor.sizes(dims), dtype=getattr(torch, tensor.dtype))
        for tensor in graph.inputs
    )


def traced_dims(shapes: Sequence[Shape]) -> dict[str, int]:
    """Returns the dimensions to trace at: those of the longest context, each at least 2 where it
    is to stay symbolic, since torch takes a dimension of 1 for a constant."""
    longest = max(shapes, key=lambda shape: shape.dims.get("context", 0))
    return {
        name: max(size, min(2, max(shape.dims[name] for shape in shapes)))
        for name, size in longest.dims.items()
    }


def trace(graph: ExportGraph, dims: Mapping[str, int]) -> onnx.ModelProto:
    """Exports a graph, traced at `dims`; those above 1 stay symbolic.

    Raises:
        EngineError: torch cannot export the module, or the result has other inputs or outputs.
    """
    return fill(*trace_outside(graph, dims))


def trace_outside(graph: ExportGraph, dims: Mapping[str, int]) -> tuple[onnx.ModelProto, Arrays]:
    """As `trace`, but large weights stand outside: as stubs in the model, and as views of the
    module's parameters beside it. For whoever rewrites the graph first, or only counts."""
    free = {name: torch.export.Dim(name) for name, size in dims.items() if size > 1}
    axes = tuple(
        {axis: free[size] for axis, size in enumerate(tensor.shape) if size in free}
        for tensor in graph.inputs
    )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports each torchvision op that it does not find
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.module.eval(),
                example_inputs(graph, dims),
                dynamo=True,
                input_names=[tensor.name for tensor in graph.inputs],
                output_names=[tensor.name for tensor in graph.outputs],
                opset_version=OPSET,
                dynamic_shapes=axes,
                verbose=False,
            )
            assert program is not None
            program.optimize()
            arrays = _take_out(program.model)
            model = program.model_proto
    except torch.onnx.OnnxExporterError as error:
        reason = brief(error, 300)
        raise EngineError(f"torch cannot export the graph {graph.name}: {reason}") from error
    finally:
        logger.setLevel(level)
    return _tidy(model, graph, arrays, dims)


def _take_out(program: Any) -> Arrays:
    """Replaces the large weights of an exported program by stubs; in place.

    What the exporter holds of a weight, transposed or not, is a view of the parameter's memory:
    one copy is made of each in the end, and who is who is told by addresses, not by values.

    Returns:
        The weights by name.
    """
    import onnx_ir as ir

    arrays = {}
    for name, value in program.graph.initializers.items():
        tensor = value.const_value
        if len(tensor.shape) > 1 and tensor.nbytes >= SHARED_BYTES:
            arrays[name] = tensor.numpy()
            value.const_value = ir.ExternalTensor(
                PLACE, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
            )
    return arrays


def _tidy(
    model: onnx.ModelProto, graph: ExportGraph, arrays: Arrays, dims: Mapping[str, int]
) -> tuple[onnx.ModelProto, Arrays]:
    """Takes out what is not the graph, names dimensions, stores equal weights once; in place.

    Returns:
        The model, and its large weights under their new names.
    """
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "dlm-edge", ""
    del model.metadata_props[:]
    body = model.graph
    body.name = graph.name
    body.doc_string = ""
    del body.metadata_props[:]
    del body.value_info[:]
    for item in (*body.node, *body.initializer, *body.input, *body.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for found, wanted in ((body.input, graph.inputs), (body.output, graph.outputs)):
        if [item.name for item in found] != [tensor.name for tensor in wanted]:
            raise EngineError(
                f"graph {graph.name} was traced with {[item.name for item in found]}, wanted "
                f"{[tensor.name for tensor in wanted]}: an input that the module ignores?"
            )
        for item, tensor in zip(found, wanted, strict=True):
            for axis, dim in enumerate(item.type.tensor_type.shape.dim):
                size = tensor.shape[axis]
                dim.Clear()
                if isinstance(size, str) and dims[size] > 1:
                    dim.dim_param = size
                else:
                    dim.dim_value = dims[size] if isinstance(size, str) else size
    _divide(model)
    share_transposed(model, arrays)
    names = name_weights(model, graph.module, arrays)
    present = {item.name for item in model.graph.initializer}
    renamed = {names.get(name, name): array for name, array in arrays.items()}
    return model, {name: array for name, array in renamed.items() if name in present}


def _divide(model: onnx.ModelProto) -> None:
    """Turns x * Reciprocal(y) into x / y, in place.

    The exporter writes rsqrt as Sqrt and Reciprocal; ONNX Runtime knows an RMS norm only by its
    division, and fuses it then (2 % of a run at dim 384 x 6 layers, block 32).
    """
    makers = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        inverted = [name for name in node.input if _op(makers, name) == "Reciprocal"]
        if node.op_type == "Mul" and len(inverted) == 1:
            (other,) = (name for name in node.input if name != inverted[0])
            below = makers[inverted[0]].input[0]
            node.op_type = "Div"
            del node.input[:]
            node.input.extend([other, below])
    used = {name for node in model.graph.node for name in node.input}
    used |= {item.name for item in model.graph.output}
    kept = [node for node in model.graph.node if used.intersection(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _op(makers: Mapping[str, onnx.NodeProto], name: str) -> str:
    return makers[name].op_type if name in makers else ""
