"""Small ONNX graphs that a micro-benchmark times, written without the onnx package.

Knows only what the probes need: a chain of one operator, each with its own second operand.
Source: onnx.proto3, IR version 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...runtime.bundle.manifest import GraphSpec, TensorSpec
from ...runtime.bundle.protobuf import write_field

IR_VERSION, OPSET = 10, 20
_FLOAT = 1
_KINDS = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}
"""TensorProto's types."""
_INTS = 7
"""AttributeProto's type for a list of integers; 2 is one integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One node of a probe."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)


def _tensor(name: str, array: np.ndarray) -> bytes:
    kind = _KINDS[str(array.dtype)]
    dims = b"".join(write_field(1, size) for size in array.shape)
    data = np.ascontiguousarray(array).tobytes()
    return dims + write_field(2, kind) + write_field(8, name) + write_field(9, data)


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return write_field(1, name) + write_field(3, value) + write_field(20, 2)
    ints = b"".join(write_field(8, item) for item in value)
    return write_field(1, name) + ints + write_field(20, _INTS)


def _node(op: Op) -> bytes:
    return (
        b"".join(write_field(1, name) for name in op.inputs)
        + b"".join(write_field(2, name) for name in op.outputs)
        + write_field(4, op.name)
        + b"".join(write_field(5, _attribute(*item)) for item in op.attributes.items())
    )


def _port(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(
        write_field(1, write_field(2 if isinstance(size, str) else 1, size)) for size in shape
    )
    tensor = write_field(1, _FLOAT) + write_field(2, dims)
    return write_field(1, name) + write_field(2, write_field(1, tensor))


def onnx_bytes(
    ops: Sequence[Op],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, np.ndarray],
) -> bytes:
    """Writes a graph of float32 inputs and outputs with its weights inside."""
    graph = (
        b"".join(write_field(1, _node(op)) for op in ops)
        + write_field(2, "probe")
        + b"".join(write_field(5, _tensor(*item)) for item in weights.items())
        + b"".join(write_field(11, _port(*item)) for item in inputs.items())
        + b"".join(write_field(12, _port(*item)) for item in outputs.items())
    )
    opset = write_field(1, "") + write_field(2, OPSET)
    return write_field(1, IR_VERSION) + write_field(7, graph) + write_field(8, opset)


def probe_spec(
    name: str,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    rows: int,
) -> GraphSpec:
    """Describes a probe as engines want it, with its one symbol made a number."""

    def specs(ports: Mapping[str, Sequence[int | str]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=port,
                dtype="float32",
                shape=tuple(rows if isinstance(size, str) else size for size in shape),
                role=f"{name}.{port}",
            )
            for port, shape in ports.items()
        )

    return GraphSpec(
        name=name,
        file=f"graphs/{name}.onnx",
        dims={"rows": rows},
        purpose="probe",
        block=None,
        precision="fp32",
        inputs=specs(inputs),
        outputs=specs(outputs),
    )
