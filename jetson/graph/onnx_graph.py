"""An ONNX graph as plain data, read from the file's bytes without the onnx package.

Why not a summary written at export: what the engine executes is this file, so figures taken from
it cannot disagree with it, and any bundle can have a forecast. Only what a forecast needs is
kept: nodes in execution order, attributes, and of each initialiser type, shape,
and its values where they are few (axes, shapes, scalars).

Source: onnx.proto3, IR version 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.bundle.protobuf import BYTES, FIXED32, VARINT, fields, packed, signed
from ...runtime.errors import BundleError, brief

MAX_VALUES = 4096
"""Initialisers up to this many items keep their values."""

DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
    21: "uint4",
    22: "int4",
}
"""ONNX's element types that a graph of ours may hold."""
ITEM_BYTES: Mapping[str, float] = {
    "float32": 4,
    "uint8": 1,
    "int8": 1,
    "int32": 4,
    "int64": 8,
    "bool": 1,
    "float16": 2,
    "float64": 8,
    "bfloat16": 2,
    "uint4": 0.5,
    "int4": 0.5,
}

Dim = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialiser:
    """A tensor stored with the graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: np.ndarray | None
    """Its values, if they are few and inside the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of the graph."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    """Numbers and symbols."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation."""

    op: str
    inputs: tuple[str, ...]
    """Names; an empty one is an optional input left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A whole graph; nodes are in execution order."""

    nodes: tuple[Node, ...]
    initialisers: Mapping[str, Initialiser]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def read_graph(data: bytes, name: str = "the graph") -> Graph:
    """Reads an ONNX file.

    Args:
        data: Its bytes; weights may lie outside.

    Raises:
        BundleError: The bytes are no ONNX graph, or one of types that no forecast knows.
    """
    view = memoryview(data)
    try:
        for number, kind, start, end in fields(view, 0, len(view)):
            if (number, kind) == (7, BYTES):
                return _graph(view, start, end)
    except (ValueError, KeyError, UnicodeDecodeError, TypeError) as error:
        raise BundleError(
            f"{name} is no ONNX graph that can be planned ({brief(error, 60)}): export it again"
        ) from error
    raise BundleError(f"{name} holds no ONNX graph: export it again")


def _graph(view: memoryview, at: int, end: int) -> Graph:
    nodes: list[Node] = []
    initialisers: dict[str, Initialiser] = {}
    ports: dict[int, list[Port]] = {11: [], 12: []}
    for number, kind, start, stop in fields(view, at, end):
        if kind != BYTES:
            continue
        if number == 1:
            nodes.append(_node(view, start, stop))
        elif number == 5:
            item = _tensor(view, start, stop)
            initialisers[item.name] = item
        elif number in ports:
            ports[number].append(_port(view, start, stop))
    return Graph(
        nodes=tuple(nodes),
        initialisers=initialisers,
        inputs=tuple(port for port in ports[11] if port.name not in initialisers),
        outputs=tuple(ports[12]),
    )


def _text(view: memoryview, start: int, stop: int) -> str:
    return bytes(view[start:stop]).decode()


def _node(view: memoryview, at: int, end: int) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Any] = {}
    name = op = ""
    for number, kind, start, stop in fields(view, at, end):
        if kind != BYTES:
            continue
        match number:
            case 1:
                inputs.append(_text(view, start, stop))
            case 2:
                outputs.append(_text(view, start, stop))
            case 3:
                name = _text(view, start, stop)
            case 4:
                op = _text(view, start, stop)
            case 5:
                key, value = _attribute(view, start, stop)
                attributes[key] = value
    return Node(
        op=op, inputs=tuple(inputs), outputs=tuple(outputs), attributes=attributes, name=name
    )


def _attribute(view: memoryview, at: int, end: int) -> tuple[str, Any]:
    name, kind_of, single, many = "", 0, None, []
    for number, kind, start, stop in fields(view, at, end):
        if number == 1:
            name = _text(view, start, stop)
        elif number == 20:
            kind_of = start
        elif number == 2:
            single = float(np.frombuffer(view[start:stop], "<f4")[0])
        elif number == 3:
            single = signed(start)
        elif number == 4:
            single = _text(view, start, stop)
        elif number == 5:
            single = _tensor(view, start, stop)
        elif number == 7:
            many += np.frombuffer(view[start:stop], "<f4").tolist()
        elif number == 8:
            many += [signed(start)] if kind == VARINT else packed(view, start, stop)
        elif number in (6, 11):
            raise ValueError("a graph inside a graph")
    # 6, 7, 8: lists, which may be empty; a zero is not written, so an int or float may be absent.
    if kind_of in (6, 7, 8) or many:
        return name, tuple(many)
    return name, {1: 0.0, 2: 0, 3: ""}.get(kind_of) if single is None else single


def _tensor(view: memoryview, at: int, end: int) -> Initialiser:
    dims: list[int] = []
    name, dtype, raw, external = "", 0, None, False
    items: list[Any] = []
    for number, kind, start, stop in fields(view, at, end):
        if number == 1:
            dims += [signed(start)] if kind == VARINT else packed(view, start, stop)
        elif (number, kind) == (2, VARINT):
            dtype = start
        elif number == 8:
            name = _text(view, start, stop)
        elif number == 9:
            raw = view[start:stop]
        elif number in (5, 7):
            items += [signed(start)] if kind == VARINT else packed(view, start, stop)
        elif number == 4:
            items += np.frombuffer(view[start:stop], "<f4").tolist()
        elif number == 14:
            external = start == 1
        if number == 4 and kind not in (BYTES, FIXED32):
            raise ValueError("a float of another wire type")
    kind_name = DTYPES[dtype]
    return Initialiser(
        name=name,
        dtype=kind_name,
        shape=tuple(dims),
        value=None if external else _values(kind_name, tuple(dims), raw, items),
    )


def _values(
    dtype: str, shape: tuple[int, ...], raw: memoryview | None, items: list[Any]
) -> np.ndarray | None:
    """The tensor's values; None if they are many or of a type that NumPy has not."""
    count = int(np.prod(shape, dtype=np.int64))
    if count > MAX_VALUES or dtype in ("bfloat16", "uint4", "int4"):
        return None
    if raw is not None:
        return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"), count).reshape(shape)
    if dtype == "float16":  # stored as the bits of each value
        return np.array(items, np.uint16).view(np.float16).reshape(shape)
    return np.array(items, dtype).reshape(shape)


def _port(view: memoryview, at: int, end: int) -> Port:
    name, dtype, shape = "", 0, ()
    for number, _, start, stop in fields(view, at, end):
        if number == 1:
            name = _text(view, start, stop)
        elif number == 2:
            for _, _, first, last in _only(view, start, stop, 1):
                for inner, _, one, two in fields(view, first, last):
                    if inner == 1:
                        dtype = one
                    elif inner == 2:
                        shape = tuple(_dims(view, one, two))
    return Port(name=name, dtype=DTYPES[dtype], shape=shape)


def _only(view: memoryview, at: int, end: int, number: int) -> Iterator[tuple[int, int, int, int]]:
    return (field for field in fields(view, at, end) if field[0] == number and field[1] == BYTES)


def _dims(view: memoryview, at: int, end: int) -> Iterator[Dim]:
    for _, _, start, stop in _only(view, at, end, 1):
        size: Dim = 0
        for number, _, first, last in fields(view, start, stop):
            size = signed(first) if number == 1 else _text(view, first, last)
        yield size
