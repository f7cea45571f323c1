"""Manifest to JSON and back, trusting nothing: `manifest.json` may come from anywhere.

Reading checks every key, type and range, and that the graphs, dimensions and special ids agree
with each other; whatever is wrong ends as one `BundleError`. Knows no family and opens no file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, NoReturn

from ..errors import BundleError, brief
from .manifest import LIFETIMES, SCHEMA_VERSION, GraphSpec, Manifest, Member, TensorSpec
from .manifest_check import check_member_name, check_together, choice, reject

MAX_MEMBERS = 256
MAX_MEMBER_BYTES = 1 << 34
MAX_TENSOR_BYTES = 1 << 33
MAX_GRAPHS = 256
MAX_TENSORS = 1024
MAX_DIMS = 16
MAX_IDS = 256
MAX_DEPTH = 16
MAX_VOCAB = 1 << 24
MAX_POSITIONS = 1 << 20
ITEM_BYTES = {"bool": 1, "int8": 1, "int32": 4, "int64": 8, "float16": 2, "float32": 4}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _int(value: object, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        reject(where, f"an integer from {low} to {high}", value)
    return value


def _word(value: object, where: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        reject(where, "a short name of letters, digits, '_', '-' and '.'", value)
    return value


def _list(value: object, where: str, low: int, high: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not low <= len(value) <= high:
        reject(where, f"a list of {low} to {high} items", value)
    return value


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        reject(where, "an object", value)
    for key in value:
        if not isinstance(key, str):
            reject(f"each key of {where}", "a string", key)
    return dict(value)


def _record(value: object, where: str, kind: type) -> dict[str, Any]:
    """Checks that an object has exactly the fields of the dataclass `kind`."""
    data = _mapping(value, where)
    names = [item.name for item in fields(kind)]
    unknown = sorted(set(data) - set(names))
    if unknown:
        reject(where, f"an object without unknown keys ({', '.join(names)})", unknown)
    missing = [
        item.name
        for item in fields(kind)
        if item.name not in data and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        reject(where, f"an object with the keys {', '.join(missing)}", sorted(data))
    return data


def _plain(value: object, where: str, depth: int = 0) -> Any:
    """Free-form settings: JSON values only, finite, not nested without end."""
    if depth > MAX_DEPTH:
        reject(where, f"nested at most {MAX_DEPTH} deep", "more")
    if isinstance(value, Mapping):
        items = _mapping(value, where).items()
        return {key: _plain(item, f"{where}.{key!r:.40}", depth + 1) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        reject(where, "finite", value)
    if value is not None and not isinstance(value, str | int | float | bool):
        reject(where, "a JSON value", value)
    return value


def _tensor(value: object, where: str) -> TensorSpec:
    data = _record(value, where, TensorSpec)
    spec = TensorSpec(
        name=_word(data["name"], f"{where}.name"),
        dtype=choice(data["dtype"], f"{where}.dtype", tuple(ITEM_BYTES)),
        shape=tuple(
            _int(size, f"{where}.shape", 1, 1 << 31)
            for size in _list(data["shape"], f"{where}.shape", 0, 8)
        ),
        role=_word(data["role"], f"{where}.role"),
        lifetime=choice(data.get("lifetime", "run"), f"{where}.lifetime", LIFETIMES),
    )
    if math.prod(spec.shape) * ITEM_BYTES[spec.dtype] > MAX_TENSOR_BYTES:
        reject(f"{where}.shape", f"at most {MAX_TENSOR_BYTES} bytes in all", spec.shape)
    return spec


def _dims(value: object, where: str) -> dict[str, int]:
    dims = _mapping(value, where)
    if len(dims) > MAX_DIMS:
        reject(where, f"at most {MAX_DIMS} dimensions", len(dims))
    return {
        _word(name, f"a name in {where}"): _int(
            size, f"{where}.{name:.20}", 0 if name == "context" else 1, MAX_POSITIONS
        )
        for name, size in dims.items()
    }


def _graph(value: object, where: str) -> GraphSpec:
    data = _record(value, where, GraphSpec)
    spec = GraphSpec(
        name=_word(data["name"], f"{where}.name"),
        file=check_member_name(data["file"]),
        dims=_dims(data["dims"], f"{where}.dims"),
        purpose=_word(data["purpose"], f"{where}.purpose"),
        block=None
        if data["block"] is None
        else _int(data["block"], f"{where}.block", 1, MAX_POSITIONS),
        precision=choice(data["precision"], f"{where}.precision", PRECISIONS),
        **{
            side: tuple(
                _tensor(item, f"{where}.{side}[{index}]")
                for index, item in enumerate(_list(data[side], f"{where}.{side}", 1, MAX_TENSORS))
            )
            for side in ("inputs", "outputs")
        },
    )
    tensors = (*spec.inputs, *spec.outputs)
    for kind in ("name", "role"):
        values = [getattr(item, kind) for item in tensors]
        if len(set(values)) != len(values):
            reject(f"{where}: each tensor's {kind}", "given once", values)
    return spec


def _member(value: object, where: str) -> Member:
    data = _record(value, where, Member)
    if not isinstance(data["sha256"], str) or not _SHA256.fullmatch(data["sha256"]):
        reject(f"{where}.sha256", "64 hexadecimal digits", data["sha256"])
    return Member(
        sha256=data["sha256"], size=_int(data["size"], f"{where}.size", 0, MAX_MEMBER_BYTES)
    )


def _ids(value: object, where: str, vocab: int) -> tuple[int, ...] | None:
    """Token ids of an optional list."""
    if value is None:
        return None
    return tuple(_int(token, where, 0, vocab - 1) for token in _list(value, where, 0, MAX_IDS))


def manifest_from_dict(value: object) -> Manifest:
    """Builds a checked Manifest from parsed JSON; raises BundleError."""
    if isinstance(value, Mapping) and "schema_version" in value:
        version = value["schema_version"]
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise BundleError(
                f"manifest: this version of dlm-edge reads schema version {SCHEMA_VERSION}, found "
                f"{version!r:.20}; export the checkpoint again or use a matching version"
            )
    data = _record(value, "the file", Manifest)
    if "schema_version" not in data:
        reject("the file", "an object with the key schema_version", sorted(data))
    vocab = _int(data["vocab_size"], "vocab_size", 2, MAX_VOCAB)
    special: dict[str, int | None] = {
        key: None if data[key] is None else _int(data[key], key, 0, vocab - 1)
        for key in ("mask_token_id", "pad_token_id")
    }
    members = _mapping(data.get("members", {}), "members")
    if not 1 <= len(members) <= MAX_MEMBERS:
        reject("members", f"1 to {MAX_MEMBERS} files", len(members))
    blocks = _list(data["block_sizes"], "block_sizes", 1, MAX_GRAPHS)
    graphs = _list(data["graphs"], "graphs", 1, MAX_GRAPHS)
    settings = {
        key: _plain(_mapping(data[key], key), key)
        for key in ("model", "noise_schedule", "decoding", "provenance")
    }
    return check_together(
        Manifest(
            family=_word(data["family"], "family"),
            vocab_size=vocab,
            eos_token_id=_int(data["eos_token_id"], "eos_token_id", 0, vocab - 1),
            start_ids=_ids(data.get("start_ids"), "start_ids", vocab),
            end_ids=_ids(data.get("end_ids"), "end_ids", vocab) or (),
            mask_token_id=special["mask_token_id"],
            pad_token_id=special["pad_token_id"],
            logit_shift=_int(data["logit_shift"], "logit_shift", 0, 1),
            max_position=_int(data["max_position"], "max_position", 1, MAX_POSITIONS),
            block_sizes=tuple(_int(size, "block_sizes", 1, MAX_POSITIONS) for size in blocks),
            precision=choice(data["precision"], "precision", PRECISIONS),
            target=_word(data["target"], "target"),
            graphs=tuple(_graph(item, f"graphs[{i}]") for i, item in enumerate(graphs)),
            members={
                check_member_name(name): _member(item, f"members[{name[:60]!r}]")
                for name, item in members.items()
            },
            **settings,
        )
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key occurs twice")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def manifest_from_json(text: bytes) -> Manifest:
    """Reads `manifest.json`; raises BundleError for anything that is not a sound manifest."""
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        reason = brief(error, 80)
        raise BundleError(
            f"manifest: not readable as JSON ({reason}); the bundle is damaged or foreign: "
            "copy or export it again"
        ) from error
    return manifest_from_dict(value)


def manifest_to_json(manifest: Manifest) -> bytes:
    """Writes a manifest as UTF-8 JSON, same bytes for the same manifest; BundleError if unsound."""
    checked = manifest_from_dict(asdict(manifest))
    return (json.dumps(asdict(checked), indent=1, sort_keys=True) + "\n").encode()
