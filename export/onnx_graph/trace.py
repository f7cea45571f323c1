"""PyTorch module to one ONNX graph whose named dimensions stay symbolic.

The exporter is torch.export's (`dynamo=True`): half the nodes of the TorchScript one for the block
step (368 against 658 before ONNX Runtime's own passes, the same ops after them). What it writes
beside the graph (stack traces, with the paths of the machine) is taken out, so that equal weights
give equal bytes.

Large weights of a traced graph are views of the module's parameters, transposed ones too, and stay
that until the graph is written: memory is that of one copy. Two views of one address are one
matrix, which is how tied ones are found.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from ...calibration.graphs import array_of, is_matrix, make_node, remove_unused
from ...runtime.errors import EngineError, brief
from ...train.families.base import ExportGraph
from ...train.families.shapes import Shape
from .repeat import find_stack, of_sample, repeat, shortened

OPSET = 20
"""Highest that TensorRT 10.3's parser reads."""
IR_VERSION = 10
SHARED_BYTES = 1 << 16
"""Matrices from this size on are known by their address and stored once; smaller ones by their
values."""


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


def trace(
    graph: ExportGraph, dims: Mapping[str, int], say: Callable[[str], None] = lambda line: None
) -> ir.Model:
    """Exports a graph, traced at `dims`; those above 1 stay symbolic; raises EngineError."""
    model = _trace_repeated(graph, dims, say) or _export(graph, dims)
    _share_transposed(model)
    _name_weights(model, graph.module)
    return model


def _trace_repeated(
    graph: ExportGraph, dims: Mapping[str, int], say: Callable[[str], None]
) -> ir.Model | None:
    """Exports a graph of equal layers by tracing a few; None where that cannot be done."""
    stack = find_stack(graph.module)
    if stack is None:
        return None
    with shortened(stack) as traced:
        model = _export(of_sample(graph), dims)
    if repeat(model, graph, stack, traced):
        return model
    say(f"{graph.name}: its {len(stack.layers)} layers are not traced alike: tracing all of them")
    return None


def _export(graph: ExportGraph, dims: Mapping[str, int]) -> ir.Model:
    """Exports a module as it is."""
    free = {name: torch.export.Dim(name) for name, size in dims.items() if size > 1}
    axes = tuple(
        {axis: free[size] for axis, size in enumerate(tensor.shape) if size in free}
        for tensor in graph.inputs
    )
    parameters = list(inspect.signature(graph.module.forward).parameters.values())
    if parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
        axes = (*axes[: len(parameters) - 1], axes[len(parameters) - 1 :])
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
                optimize=False,  # done below, once: twice gives the same graph
            )
            assert program is not None
            program.optimize()
            model = program.model
    except torch.onnx.OnnxExporterError as error:
        reason = brief(error, 300)
        raise EngineError(f"torch cannot export the graph {graph.name}: {reason}") from error
    finally:
        logger.setLevel(level)
    _tidy(model, graph, dims)
    _divide(model)
    return model


def _tidy(model: ir.Model, graph: ExportGraph, dims: Mapping[str, int]) -> None:
    """Takes out what is not the graph, and names dimensions; in place."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "dlm-edge", None
    body = model.graph
    body.name = graph.name
    values = [*body.inputs, *body.initializers.values()]
    values += [value for node in body for value in node.outputs]
    for item in (model, body, *body, *values):
        item.doc_string = None
        item.metadata_props.clear()
    for node in body:
        for value in node.outputs:
            value.type = value.shape = None  # edits would make them untrue
    for value in body.initializers.values():
        value.const_value = ir.tensor(array_of(value), name=value.name)
    for found, wanted in ((body.inputs, graph.inputs), (body.outputs, graph.outputs)):
        if [value.name for value in found] != [tensor.name for tensor in wanted]:
            raise EngineError(
                f"graph {graph.name} was traced with {[value.name for value in found]}, wanted "
                f"{[tensor.name for tensor in wanted]}: an input that the module ignores?"
            )
        for value, tensor in zip(found, wanted, strict=True):
            value.dtype = ir.DataType.from_numpy(np.dtype(tensor.dtype))
            value.shape = ir.Shape(
                [1 if isinstance(size, str) and dims[size] == 1 else size for size in tensor.shape]
            )
    _read_first(body)


def _read_first(body: ir.Graph) -> None:
    """Reads each dimension from the first input that has it: the exporter takes any, in place."""
    shapes = {value: list(value.shape or ()) for value in body.inputs}
    for node in body:
        value = node.inputs[0] if node.op_type == "Shape" else None
        bounds = [node.attributes.get(name) for name in ("start", "end")]
        if value not in shapes or bounds[0] is None or bounds[1] is None:
            continue
        axis = bounds[0].as_int()
        if bounds[1].as_int() == axis + 1:
            wanted = shapes[value][axis]
            same = (item for item, shape in shapes.items() if shape[axis : axis + 1] == [wanted])
            node.replace_input_with(0, next(same))


def _divide(model: ir.Model) -> None:
    """Turns x * Reciprocal(y) into x / y, in place.

    The exporter writes rsqrt as Sqrt and Reciprocal; ONNX Runtime knows an RMS norm only by its
    division, and fuses it then (2 % of a run at dim 384 x 6 layers, block 32).
    """
    for node in model.graph:
        makers = [value.producer() if value is not None else None for value in node.inputs]
        inverted = [maker is not None and maker.op_type == "Reciprocal" for maker in makers]
        if node.op_type == "Mul" and sum(inverted) == 1:
            place = inverted.index(True)
            inverse, other = makers[place], node.inputs[1 - place]
            assert inverse is not None
            node.op_type = "Div"
            node.replace_input_with(0, other)
            node.replace_input_with(1, inverse.inputs[0])
    remove_unused(model)


def _share_transposed(model: ir.Model) -> None:
    """Replaces a matrix that is the transpose of a looked-up one by a Transpose node, in place.

    A tied embedding comes out of the exporter as rows, which a lookup reads, and as columns, which
    a product reads. ONNX Runtime folds the Transpose while it loads, TensorRT into its kernel's
    layout.
    """
    homes = _looked_up(model)
    for value in _large(model):
        home = homes.get(address(array_of(value)))
        if home is not None and home is not value and _are_transposed(value, home):
            _transpose(model, value, home)


def share_between(models: Mapping[str, ir.Model]) -> None:
    """Stores a matrix as rows where another graph looks such rows up, in place: graphs are stored
    over one file of weights, which then has the matrix once.
    """
    homes = {
        place: value for model in models.values() for place, value in _looked_up(model).items()
    }
    for model in models.values():
        own = _looked_up(model)
        for value in _large(model):
            place = address(array_of(value))
            home = homes.get(place)
            if home is None or place in own or not _are_transposed(value, home):
                continue
            name = str(home.name)
            kept = f"{name}.rows" if name == value.name else name
            rows = ir.val(kept, const_value=ir.tensor(array_of(home), name=kept))
            model.graph.register_initializer(rows)
            _transpose(model, value, rows)


def _large(model: ir.Model) -> list[ir.Value]:
    """Lists matrices that are known by their address, by name."""
    found = [value for value in model.graph.initializers.values() if is_matrix(value)]
    return sorted(
        (value for value in found if array_of(value).nbytes >= SHARED_BYTES),
        key=lambda value: str(value.name),
    )


def _looked_up(model: ir.Model) -> dict[int, ir.Value]:
    """Returns the large matrices that a Gather reads, by address."""
    return {
        address(array_of(value)): value
        for value in _large(model)
        if any(node.op_type == "Gather" for node, place in value.uses() if place == 0)
    }


def _are_transposed(value: ir.Value, home: ir.Value) -> bool:
    return array_of(value).shape == array_of(home).shape[::-1]


def address(array: np.ndarray) -> int:
    """Returns where an array's first item lies."""
    return array.__array_interface__["data"][0]


def _transpose(model: ir.Model, value: ir.Value, home: ir.Value) -> None:
    """Makes a matrix the transpose of another initialiser of its graph, in place."""
    graph, name = model.graph, str(value.name)
    turned = make_node("Transpose", [home], name, perm=[1, 0])
    value.replace_all_uses_with(turned.outputs[0])
    del graph.initializers[name]
    graph.insert_before(graph[0], turned)


def _name_weights(model: ir.Model, module: nn.Module) -> None:
    """Renames matrices after the module's parameters, so that recipes and reports can be read.

    The exporter folds transposes into constants and numbers them (`val_97`). A constant that holds
    a parameter's values, as they are or transposed, gets that parameter's name back.
    """
    parameters = dict(module.named_parameters())
    places = {address(tensor.detach().numpy()): name for name, tensor in parameters.items()}
    large = _large(model)
    for value in large:
        name = places.get(address(array_of(value)))
        if (
            name is not None
            and value.name not in parameters
            and name not in model.graph.initializers
        ):
            value.name = name
    _name_small(model, parameters, {str(value.name) for value in large})


def _name_small(
    model: ir.Model, parameters: Mapping[str, torch.Tensor], large: Collection[str]
) -> None:
    """Names small matrices by their values."""
    items = model.graph.initializers
    known: dict[str, list[str]] = defaultdict(list)
    for name, tensor in parameters.items():
        if tensor.ndim == 2 and name not in items and tensor.nbytes < SHARED_BYTES:
            array = tensor.detach().cpu().numpy()
            # A square symmetric matrix would be found twice under one key, hence the set.
            for key in {_key(array), _key(array.T)}:
                known[key].append(name)
    for value in list(items.values()):
        if not is_matrix(value) or value.name in parameters or value.name in large:
            continue
        # Equal parameters (untrained, all zero) take their names in the graph's order.
        free = [name for name in known[_key(array_of(value))] if name not in items]
        if free:
            value.name = free[0]


def _key(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array)
    return f"{data.shape}{data.dtype}{hashlib.sha256(data.tobytes()).hexdigest()}"
