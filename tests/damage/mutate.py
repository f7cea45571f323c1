"""Ways to damage bytes, JSON values, zip files and ONNX graphs, by a random source."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from random import Random
from typing import Any

import onnx

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "\ud800",
    "\u202e\u0301",
    "a" * 5000,
    "{{",
    "%s%n",
    "true",
    "1e999",
)
ODD_NUMBERS = (0, 1, -1, 2, 3, 255, 1 << 31, -(1 << 31), 1 << 63, 1 << 70, 0.5, 1e308, -0.0, 1e-320)


def odd_value(rng: Random) -> Any:
    """A JSON value that nobody expects."""
    kind = rng.randrange(7)
    if kind < 2:
        return rng.choice(ODD_NUMBERS)
    if kind == 2:
        return rng.choice(ODD_TEXTS)
    if kind == 3:
        return rng.choice((None, True, False, float("nan"), float("inf")))
    if kind == 4:
        return rng.choice(([], {}, [[]], {"": {}}, [None] * 300))
    if kind == 5:
        nested: Any = 0
        for _ in range(rng.choice((20, 900))):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    return rng.randrange(-1000, 1000)


def damage_bytes(rng: Random, data: bytes) -> bytes:
    """Flips, cuts, repeats, moves or overwrites a few places."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(found) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64, max(1, len(found) // 3)))
        match rng.randrange(7):
            case 0 | 1:
                if found:
                    found[at % len(found)] ^= 1 << rng.randrange(8)
            case 2:
                found[at : at + size] = rng.randbytes(size)
            case 3:
                del found[at : at + size]
            case 4:
                found[at:at] = found[at : at + size] or b"\0"
            case 5:
                del found[at:]
            case 6:
                edge = rng.choice(EDGES).to_bytes(8, rng.choice(("little", "big")))
                found[at : at + 4] = edge[:4] if rng.random() < 0.5 else edge[4:]
    return bytes(found)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    found, todo = [], [value]
    while todo:
        item = todo.pop()
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, child in pairs:
            found.append((item, key))
            if isinstance(child, dict | list):
                todo.append(child)
    return found


def damage_json(rng: Random, value: Any) -> Any:
    """A copy of a JSON value with a few places changed, removed, renamed or swapped."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = _places(value) if isinstance(value, dict | list) else []
        if not places or rng.random() < 0.01:
            return odd_value(rng)
        # Long lists would take nearly all the damage: a vocabulary has thousands of places.
        holder, key = places[min(int(rng.expovariate(1 / 40)), rng.randrange(len(places)))]
        old = holder[key]
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(old, int | float) and not isinstance(old, bool):
                holder[key] = rng.choice((old + 1, old - 1, old * 2, -old, str(old), float(old)))
            case 2 if isinstance(holder, dict):
                holder[rng.choice((*ODD_TEXTS, key + "x"))] = holder.pop(key)
            case 3:
                other, where = rng.choice(places)
                if (where in other) if isinstance(other, dict) else where < len(other):
                    holder[key] = json.loads(json.dumps(other[where]))
            case 4 if isinstance(old, list) and old:
                old.append(old[0])
            case _:
                holder[key] = odd_value(rng)
    return value


def damage_json_text(rng: Random, text: bytes) -> bytes:
    """Damages a JSON file as a value, or its text."""
    if rng.random() < 0.15:
        return damage_bytes(rng, text)
    if rng.random() < 0.03:
        return b"[" * 100_000 if rng.random() < 0.5 else b'{"a":' * 100_000
    return json.dumps(damage_json(rng, json.loads(text))).encode()


def damage_header(rng: Random, data: bytes) -> bytes:
    """Damages a safetensors file: its length field, its JSON header or its values."""
    (size,) = struct.unpack("<Q", data[:8])
    header, values = data[8 : 8 + size], data[8 + size :]
    match rng.randrange(4):
        case 0:
            length = rng.choice((*EDGES, size - 1, size + 1, 1 << 40, (1 << 64) - 1))
            return struct.pack("<Q", length) + data[8:]
        case 1 | 2:
            header = damage_json_text(rng, header)
            return struct.pack("<Q", len(header)) + header + values
        case _:
            return data[: 8 + size] + damage_bytes(rng, values)


def damage_graph(rng: Random, data: bytes) -> bytes:
    """Damages an ONNX file as bytes, or as a graph that is still well-formed protobuf."""
    if rng.random() < 0.4:
        return damage_bytes(rng, data)
    model = onnx.load_from_string(data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 4))):
        node = rng.choice(graph.node) if graph.node else None
        match rng.randrange(10):
            case 0 if node:
                node.op_type = rng.choice(graph.node).op_type
            case 1 if node and node.input:
                source = rng.choice(graph.node)
                places = [*source.output, *source.input, "", "nowhere"]
                node.input[rng.randrange(len(node.input))] = rng.choice(places)
            case 2 if node and node.attribute:
                attribute = rng.choice(node.attribute)
                attribute.i = rng.choice((0, 1, -1, 3, 99, 1 << 40))
                if attribute.ints:
                    attribute.ints[0] = attribute.i
            case 3 if graph.initializer:
                tensor = rng.choice(graph.initializer)
                if tensor.dims:
                    tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(
                        (0, 1, -1, 7, 1 << 40)
                    )
            case 4 if graph.initializer:
                rng.choice(graph.initializer).data_type = rng.randrange(30)
            case 5:
                external = [t for t in graph.initializer if t.external_data]
                if external:
                    entry = rng.choice(rng.choice(external).external_data)
                    entry.value = rng.choice(
                        ("0", "-1", "1", "99999999999", "x", "../x", "/dev/zero")
                    )
            case 6:
                put = rng.choice([*graph.input, *graph.output])
                shape = put.type.tensor_type.shape.dim
                if shape:
                    rng.choice(shape).dim_value = rng.choice((0, 1, 5, 1 << 40))
            case 7:
                put = rng.choice([*graph.input, *graph.output])
                put.type.tensor_type.elem_type = rng.choice((1, 6, 7, 9, 10, 11))
            case 8 if node:
                graph.node.remove(node)
            case 9:
                put = rng.choice([*graph.input, *graph.output])
                put.name = rng.choice((put.name + "x", "", "logits"))
    if rng.random() < 0.05:
        model.ir_version = rng.choice((0, 1, 99))
    return model.SerializeToString()


def read_zip(data: bytes) -> dict[str, bytes]:
    """The members of a zip, by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        return {name: source.read(name) for name in source.namelist()}


def write_zip(members: dict[str, bytes]) -> bytes:
    """A zip of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    return out.getvalue()


def _damage_directory(rng: Random, data: bytes) -> bytes:
    """Changes a field of a zip's local or central headers, or of its end."""
    found = bytearray(data)
    marks = [b"PK\3\4", b"PK\1\2", b"PK\5\6"]
    places = [at for mark in marks for at in range(len(data) - 4) if data[at : at + 4] == mark]
    at = rng.choice(places) + rng.randrange(4, 46)
    size = rng.choice((1, 2, 4))
    value = rng.choice((rng.choice(EDGES), rng.getrandbits(32))) & ((1 << 8 * size) - 1)
    found[at : at + size] = value.to_bytes(size, "little")
    return bytes(found)


def damage_bundle(rng: Random, data: bytes) -> bytes:
    """Damages a bundle: the zip around it, or a member that its manifest then vouches for."""
    match rng.randrange(8):
        case 0:
            return damage_bytes(rng, data)
        case 1:
            return _damage_directory(rng, data)
    members = read_zip(data)
    if rng.random() < 0.3:
        members["manifest.json"] = damage_json_text(rng, members["manifest.json"])
        return write_zip(members)
    kinds: dict[str, list[str]] = {}
    for name in members:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    name = rng.choice(kinds[rng.choice(sorted(kinds))])
    content = members[name]
    if name.endswith(".onnx"):
        content = damage_graph(rng, content)
    elif name.endswith(".json") and name != "manifest.json":
        content = damage_json_text(rng, content)
    else:
        content = damage_bytes(rng, content)
    members[name] = content
    if name != "manifest.json":
        manifest = json.loads(members["manifest.json"])
        digest = hashlib.sha256(content).hexdigest()
        manifest["members"][name] = {"sha256": digest, "size": len(content)}
        members["manifest.json"] = json.dumps(manifest).encode()
    if rng.random() < 0.05:
        members.pop(rng.choice(list(members)))
    return write_zip(members)
