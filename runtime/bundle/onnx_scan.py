"""Which files an ONNX graph would read: a bounded walk over its protobuf bytes, without onnx.

A hostile graph could name any file as the home of its weights. So before a graph is unpacked for a
backend, every `external_data` entry in it is found and checked against the bundle's members. Only
the message fields that can lead to a tensor are followed (onnx.proto3, IR version 10).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

from ..errors import BundleError, brief
from .protobuf import BYTES, fields

MAX_DEPTH = 24

# message → {field number: message it holds}; everything else is skipped over.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}


def _walk(
    data: memoryview, message: str, at: int, end: int, depth: int
) -> Iterator[dict[str, str]]:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    children = _FIELDS[message]
    entries: dict[str, str] = {}
    for number, kind, start, stop in fields(data, at, end):
        child = children.get(number) if kind == BYTES else None
        if child == "Entry":
            pair = {key: (a, b) for key, kind, a, b in fields(data, start, stop) if kind == BYTES}
            texts = [bytes(data[slice(*pair.get(key, (0, 0)))]).decode() for key in (1, 2)]
            if texts[0] in entries:
                raise ValueError("an external_data key that occurs twice")
            entries[texts[0]] = texts[1]
        elif child is not None:
            yield from _walk(data, child, start, stop, depth + 1)
    if entries:
        yield entries


def check_external_data(name: str, graph: bytes, sizes: Mapping[str, int]) -> None:
    """Checks that a graph reads its weights from members of its own bundle only.

    Args:
        name: Member name of the graph; locations are relative to its folder.
        sizes: Size of every member in bytes.

    Raises:
        BundleError: The bytes are no ONNX graph, or a tensor lies outside the members.
    """
    try:
        for entry in _walk(memoryview(graph), "Model", 0, len(graph), 0):
            location = entry.get("location", "")
            member = posixpath.join(posixpath.dirname(name), location)
            if "\\" in location or ".." in location.split("/") or member not in sizes:
                raise BundleError(
                    f"{name} wants its weights from {location[:60]!r}, which is no member of the "
                    "bundle; do not use this bundle"
                )
            offset, length = int(entry.get("offset", "0")), int(entry.get("length", "0"))
            if offset < 0 or length < 0 or offset + length > sizes[member]:
                raise BundleError(
                    f"{name} wants bytes {offset} to {offset + length} of {member}, which has "
                    f"{sizes[member]}; the bundle is damaged: export it again"
                )
    except ValueError as error:
        reason = brief(error, 60)
        raise BundleError(
            f"{name} is no readable ONNX graph ({reason!r}); the bundle is damaged: export it again"
        ) from error
