"""How each operator's output shapes and dtypes follow from its inputs. Knows no graph.

A rule takes the node and its inputs (`shape`, `dtype`, and `known` where the contents are known)
and gives (shape, dtype) per output.

Source: the ONNX operator reference, opset 20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .onnx_graph import DTYPES, Node

_DTYPES: Mapping[str, Any] = {
    **dict.fromkeys(("value_int", "value_ints"), np.int64),
    **dict.fromkeys(("value_float", "value_floats"), np.float32),
}


def constant_value(node: Node, inputs: Sequence[Any]) -> np.ndarray | None:
    """What a Constant holds; None where it was too large to keep."""
    ((key, value),) = node.attributes.items()
    return value.value if key == "value" else np.array(value, _DTYPES[key])


def _divide(node: Node, inputs: Sequence[Any]) -> np.ndarray:
    a, b = inputs
    # ONNX's integer division cuts towards zero.
    return np.trunc(np.true_divide(a, b)) if np.asarray(a).dtype.kind in "iu" else a / b


def _slice_value(node: Node, inputs: Sequence[Any]) -> np.ndarray:
    data, starts, ends, *rest = inputs
    axes = rest[0].reshape(-1).tolist() if rest and rest[0] is not None else range(starts.size)
    steps = rest[1].reshape(-1).tolist() if len(rest) > 1 and rest[1] is not None else None
    for place, axis in enumerate(axes):
        window = slice(
            int(starts.reshape(-1)[place]),
            int(ends.reshape(-1)[place]),
            None if steps is None else steps[place],
        )
        data = data[(slice(None),) * (axis % data.ndim) + (window,)]
    return data


def _filled_value(node: Node, inputs: Sequence[Any]) -> np.ndarray:
    value = node.attributes.get("value")
    fill = 0.0 if value is None else value.value.reshape(-1)[0]
    return np.full(tuple(inputs[0].reshape(-1).tolist()), fill)


# What a value's shape does not change is reshaped by the caller.
VALUES: Mapping[str, Callable[[Node, Sequence[Any]], Any]] = {
    **dict.fromkeys(
        ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), lambda node, given: given[0]
    ),
    "Add": lambda node, given: given[0] + given[1],
    "Concat": lambda node, given: np.concatenate(given, axis=node.attributes["axis"]),
    "Constant": constant_value,
    "ConstantOfShape": _filled_value,
    "Div": _divide,
    "Equal": lambda node, given: given[0] == given[1],
    "Expand": lambda node, given: given[0] * np.ones(given[1].reshape(-1).tolist(), given[0].dtype),
    "Gather": lambda node, given: np.take(given[0], given[1], node.attributes.get("axis", 0)),
    "Max": lambda node, given: np.maximum.reduce(given),
    "Min": lambda node, given: np.minimum.reduce(given),
    "Mul": lambda node, given: given[0] * given[1],
    "Neg": lambda node, given: -given[0],
    "Range": lambda node, given: np.arange(*(value.reshape(-1)[0] for value in given)),
    "Slice": _slice_value,
    "Sub": lambda node, given: given[0] - given[1],
    "Where": lambda node, given: np.where(*given),
}
"""Operators that shapes are computed with."""


Result = tuple[tuple[int, ...], str]
"""Shape and dtype."""


def mat_mul(node: Node, given: Sequence[Any]) -> list[Result]:
    """Products of matrices, batches broadcast."""
    a, b = given[0].shape, given[1].shape
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        raise ValueError(f"{a} times {b}")
    shape = [*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]]
    if len(b) == 1:
        del shape[-1]
    if len(a) == 1:
        del shape[-2 if len(b) > 1 else -1]
    return [(tuple(shape), given[0].dtype)]


def gemm(node: Node, given: Sequence[Any]) -> list[Result]:
    """Products of two matrices, either turned."""
    rows = given[0].shape[1 if node.attributes.get("transA", 0) else 0]
    columns = given[1].shape[0 if node.attributes.get("transB", 0) else 1]
    return [((rows, columns), given[0].dtype)]


def einsum_sizes(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[dict[str, int], str]:
    """Returns the size of each index of an equation without ellipsis, and the output's indices."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    sizes = {
        index: size
        for term, shape in zip(terms, shapes, strict=True)
        for index, size in zip(term, shape, strict=True)
    }
    letters = left.replace(",", "")
    implied = "".join(sorted(index for index in sizes if letters.count(index) == 1))
    return sizes, right if arrow else implied


def einsum(node: Node, given: Sequence[Any]) -> list[Result]:
    """Sums over the indices that the output leaves out."""
    sizes, right = einsum_sizes(node.attributes["equation"], [value.shape for value in given])
    return [(tuple(sizes[index] for index in right), given[0].dtype)]


def conv(node: Node, given: Sequence[Any]) -> list[Result]:
    """Convolutions of any rank with explicit padding."""
    image, kernel = given[0].shape, given[1].shape
    rank = len(image) - 2
    if node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("auto_pad")
    pads = node.attributes.get("pads") or (0,) * (2 * rank)
    strides = node.attributes.get("strides") or (1,) * rank
    dilations = node.attributes.get("dilations") or (1,) * rank
    space = [
        (image[2 + i] + pads[i] + pads[rank + i] - dilations[i] * (kernel[2 + i] - 1) - 1)
        // strides[i]
        + 1
        for i in range(rank)
    ]
    return [((image[0], kernel[0], *space), given[0].dtype)]


def mat_mul_groups(node: Node, given: Sequence[Any]) -> list[Result]:
    """By a matrix (N, groups, bytes) of few bits."""
    return [((*given[0].shape[:-1], node.attributes["N"]), given[0].dtype)]


Rule = Callable[[Node, Sequence[Any]], list[Result]]


def _same(node: Node, given: Sequence[Any]) -> list[Result]:
    return [(given[0].shape, given[0].dtype)]


def _broadcast(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = np.broadcast_shapes(*(value.shape for value in given if value is not None))
    return [(shape, given[-1].dtype if node.op == "Where" else given[0].dtype)]


def _whole(value: Any) -> list[int]:
    """The numbers that an input is known to hold."""
    return value.known.reshape(-1).tolist()


def _axes(node: Node, given: Sequence[Any], position: int, rank: int) -> list[int] | None:
    """Axes from an attribute or an input, counted from the front; None if there are none."""
    axes = node.attributes.get("axes")
    if axes is None and len(given) > position and given[position] is not None:
        axes = _whole(given[position])
    return None if axes is None else [axis % rank for axis in axes]


def _reduce(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = given[0].shape
    axes = _axes(node, given, 1, len(shape))
    if axes is None:
        if node.attributes.get("noop_with_empty_axes", 0):
            return _same(node, given)
        axes = list(range(len(shape)))
    keep = node.attributes.get("keepdims", 1)
    sizes = [
        1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes
    ]
    return [(tuple(sizes), given[0].dtype)]


def _arg_max(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    axis = node.attributes.get("axis", 0) % len(shape)
    shape[axis : axis + 1] = [1] if node.attributes.get("keepdims", 1) else []
    return [(tuple(shape), "int64")]


def _top_k(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    shape[node.attributes.get("axis", -1)] = _whole(given[1])[0]
    return [(tuple(shape), given[0].dtype), (tuple(shape), "int64")]


def _reshape(node: Node, given: Sequence[Any]) -> list[Result]:
    source = given[0].shape
    wanted = _whole(given[1])
    if not node.attributes.get("allowzero", 0):
        wanted = [source[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    total = int(np.prod(source, dtype=np.int64))
    if -1 in wanted:
        rest = int(np.prod([size for size in wanted if size != -1], dtype=np.int64))
        wanted[wanted.index(-1)] = total // rest
    if int(np.prod(wanted, dtype=np.int64)) != total:
        raise ValueError(f"{source} as {wanted}")
    return [(tuple(wanted), given[0].dtype)]


def _flatten(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = given[0].shape
    axis = node.attributes.get("axis", 1) % (len(shape) + 1)
    parts = (shape[:axis], shape[axis:])
    return [(tuple(int(np.prod(part, dtype=np.int64)) for part in parts), given[0].dtype)]


def _squeeze(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = given[0].shape
    axes = _axes(node, given, 1, len(shape))
    kept = [
        size for axis, size in enumerate(shape) if (size != 1 if axes is None else axis not in axes)
    ]
    return [(tuple(kept), given[0].dtype)]


def _unsqueeze(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    raw = node.attributes.get("axes") or _whole(given[1])
    rank = len(shape) + len(raw)
    for axis in sorted(item % rank for item in raw):
        shape.insert(axis, 1)
    return [(tuple(shape), given[0].dtype)]


def _transpose(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = given[0].shape
    perm = node.attributes.get("perm") or tuple(reversed(range(len(shape))))
    return [(tuple(shape[axis] for axis in perm), given[0].dtype)]


def _concat(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    axis = node.attributes["axis"] % len(shape)
    shape[axis] = sum(value.shape[axis] for value in given)
    return [(tuple(shape), given[0].dtype)]


def _split(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    axis = node.attributes.get("axis", 0) % len(shape)
    if len(given) > 1 and given[1] is not None:
        parts = _whole(given[1])
    else:
        count = node.attributes.get("num_outputs", len(node.outputs))
        size = -(-shape[axis] // count)
        parts = [size] * (count - 1) + [shape[axis] - size * (count - 1)]
    return [((*shape[:axis], size, *shape[axis + 1 :]), given[0].dtype) for size in parts]


def _slice(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    starts, ends = (_whole(given[place]) for place in (1, 2))
    axes = _axes(node, given, 3, len(shape)) or list(range(len(starts)))
    steps = [1] * len(starts)
    if len(given) > 4 and given[4] is not None:
        steps = _whole(given[4])
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
    return [(tuple(shape), given[0].dtype)]


def _gather(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = given[0].shape
    axis = node.attributes.get("axis", 0) % len(shape)
    return [((*shape[:axis], *given[1].shape, *shape[axis + 1 :]), given[0].dtype)]


def _gather_nd(node: Node, given: Sequence[Any]) -> list[Result]:
    batch = node.attributes.get("batch_dims", 0)
    shape, index = given[0].shape, given[1].shape
    return [((*index[:-1], *shape[batch + index[-1] :]), given[0].dtype)]


def _expand(node: Node, given: Sequence[Any]) -> list[Result]:
    wanted = tuple(_whole(given[1]))
    return [(np.broadcast_shapes(given[0].shape, wanted), given[0].dtype)]


def _tile(node: Node, given: Sequence[Any]) -> list[Result]:
    repeats = _whole(given[1])
    sizes = (size * count for size, count in zip(given[0].shape, repeats, strict=True))
    return [(tuple(sizes), given[0].dtype)]


def _pad(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    pads = _whole(given[1])
    axes = _axes(node, given, 3, len(shape)) or list(range(len(shape)))
    for place, axis in enumerate(axes):
        shape[axis] += pads[place] + pads[len(axes) + place]
    return [(tuple(shape), given[0].dtype)]


def _range(node: Node, given: Sequence[Any]) -> list[Result]:
    start, limit, delta = (float(value.known.reshape(-1)[0]) for value in given)
    return [((max(0, int(np.ceil((limit - start) / delta))),), given[0].dtype)]


def _filled(node: Node, given: Sequence[Any]) -> list[Result]:
    value = node.attributes.get("value")
    shape = tuple(_whole(given[0]))
    return [(shape, "float32" if value is None else value.dtype)]


def _constant(node: Node, given: Sequence[Any]) -> list[Result]:
    held = node.attributes.get("value")
    if held is not None:
        return [(held.shape, held.dtype)]
    value = np.asarray(constant_value(node, []))
    return [(value.shape, str(value.dtype))]


def _one_hot(node: Node, given: Sequence[Any]) -> list[Result]:
    shape = list(given[0].shape)
    axis = node.attributes.get("axis", -1)
    depth = int(_whole(given[1])[0])
    shape.insert(axis % (len(shape) + 1), depth)
    return [(tuple(shape), given[2].dtype)]


def _shape(node: Node, given: Sequence[Any]) -> list[Result]:
    return [((len(shape_of(node, given[0].shape)),), "int64")]


def shape_of(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a Shape node gives for an input of this shape."""
    return shape[node.attributes.get("start", 0) : node.attributes.get("end", len(shape))]


def _quantize(node: Node, given: Sequence[Any]) -> list[Result]:
    zero = given[2] if len(given) > 2 else None
    return [(given[0].shape, "uint8" if zero is None else zero.dtype)]


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **_each(
        "Abs Ceil Clip Cos CumSum Erf Exp Floor Gelu Identity LayerNormalization Log LogSoftmax "
        "Neg Not Reciprocal Relu Round Sigmoid Sign Sin Softmax Softplus Sqrt Tanh Trilu",
        _same,
    ),
    **_each("Add And Div Max Min Mul Or Pow Sub Sum Where", _broadcast),
    **_each(
        "Equal Greater GreaterOrEqual IsNaN Less LessOrEqual",
        lambda node, given: [(_broadcast(node, given)[0][0], "bool")],
    ),
    **_each("ReduceMax ReduceMean ReduceMin ReduceSum", _reduce),
    "ArgMax": _arg_max,
    "Cast": lambda node, given: [(given[0].shape, DTYPES[node.attributes["to"]])],
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": conv,
    "DequantizeLinear": lambda node, given: [(given[0].shape, given[1].dtype)],
    "DynamicQuantizeLinear": lambda node, given: [
        (given[0].shape, "uint8"),
        ((), "float32"),
        ((), "uint8"),
    ],
    "Einsum": einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": lambda node, given: [(given[1].shape, given[0].dtype)],
    "GatherND": _gather_nd,
    "Gemm": gemm,
    "MatMul": mat_mul,
    "MatMulInteger": lambda node, given: [(mat_mul(node, given)[0][0], "int32")],
    "MatMulNBits": mat_mul_groups,
    "OneHot": _one_hot,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Every operator that export's linter admits."""
