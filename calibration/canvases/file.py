"""Canvases on disk: recorded once, used for every precision and target made of one checkpoint.

A file is a zip of `index.json` and one member per different array, raw and deflated; a cache whose
first rows many canvases share is stored once. The index says what the canvases belong to; a file
that belongs to anything else is refused, never mixed in. Reading trusts nothing: sizes come first,
arrays are raw numbers of the shapes that the graphs have, nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphKey, GraphSpec, graph_key
from ...runtime.errors import CalibrationError, brief
from ...runtime.files import parse_json, writing
from ...train.files import write_file
from .canvases import SOURCES, CanvasSet, Inputs, RecordedRun

VERSION = 3
INDEX = "index.json"
MAX_INDEX_BYTES = 64 << 20
MAX_BYTES = 8 << 30
"""Of all arrays unpacked; a recording is bounded by CanvasSettings.max_mib long before."""
DTYPES = ("int32", "float32", "float16", "int64")
Progress = Callable[[int, int], None]
Sets = Mapping[str, CanvasSet]
Owner = Mapping[str, Any]
"""What canvases belong to: JSON values under the words that messages use for them."""


def write_canvases(
    path: Path, sets: Sets, owner: Owner, progress: Progress = lambda done, total: None
) -> None:
    """Writes sets by name, whole or not at all; raises CalibrationError."""
    with writing(f"the canvases {path}", "choose another --canvases", CalibrationError):
        write_file(path, partial(_write, sets=sets, owner=owner, progress=progress))


def _write(path: Path, *, sets: Sets, owner: Owner, progress: Progress) -> None:
    total = sum(map(len, sets.values()))
    everything = [canvas for content in sets.values() for canvas in content.items]
    whole: dict[tuple[Any, ...], np.ndarray] = {}
    for array in (item for canvas in everything for item in canvas.inputs.arrays.values()):
        if key := _place(array):
            whole[key] = max(whole.get(key, array), array, key=len)
    members: dict[tuple[str, tuple[int, ...], str], int] = {}
    sizes: list[list[Any]] = []
    stored: dict[tuple[Any, ...], int] = {}
    done = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:

        def store(array: np.ndarray) -> list[int]:
            """Writes an array, or what it is the beginning of, once; gives number and rows."""
            key = _place(array)
            if key not in stored:
                data = np.ascontiguousarray(whole.get(key, array))
                digest = hashlib.sha256(data.tobytes()).hexdigest()
                known = (data.dtype.name, data.shape, digest)
                if known not in members:
                    members[known] = len(sizes)
                    archive.writestr(f"arrays/{len(sizes)}", data.tobytes())
                    sizes.append([data.dtype.name, list(data.shape)])
                stored[key] = members[known]
            return [stored[key], len(array)]

        found: dict[str, Any] = {}
        for name, content in sets.items():
            items = []
            for canvas in content.items:
                items.append(_canvas_json(canvas, store))
                done += 1
                progress(done, total)
            found[name] = {
                "model_sha256": content.model_sha256,
                "recipe": dict(content.recipe),
                "items": items,
            }
        index = {"version": VERSION, "owner": dict(owner), "arrays": sizes, "sets": found}
        archive.writestr(INDEX, json.dumps(index))


def _place(array: np.ndarray) -> tuple[Any, ...]:
    """Returns where in memory an array begins: arrays with one beginning hold the same values.

    Arrays without an item begin nowhere; they differ by their shapes only.
    """
    begin = array.__array_interface__["data"][0] if array.size else -1
    return (begin, array.dtype.name, array.shape[1:], array.flags.c_contiguous)


def _canvas_json(canvas: RecordedRun, store: Callable[[np.ndarray], list[int]]) -> dict[str, Any]:
    return {
        "graph": canvas.spec.name,
        "dims": dict(canvas.spec.dims),
        "inputs": {name: store(array) for name, array in canvas.inputs.arrays.items()},
        "mask_ratio": canvas.mask_ratio,
        "progress": canvas.progress,
        "committing": np.flatnonzero(canvas.committing).tolist(),
        "weight": canvas.weight,
        "source": canvas.source,
        "rest": canvas.rest,
    }


def read_canvases(path: Path, owner: Owner, specs: Sequence[GraphSpec]) -> dict[str, CanvasSet]:
    """Reads a file of canvases.

    Args:
        owner: What they must belong to.

    Raises:
        CalibrationError: The file cannot be read, is damaged, or belongs to something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path, owner, specs)
    except OSError as error:
        raise CalibrationError(
            f"cannot read the canvases {path}: {error.strerror}; choose another --canvases"
        ) from error
    except (
        zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
        NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        raise CalibrationError(
            f"{path} is no file of canvases or is damaged ({brief(error, 80) or 'cut short'}): "
            "delete it, and the next export with --canvases records it again"
        ) from error


def _read(
    archive: zipfile.ZipFile, path: Path, owner: Owner, specs: Sequence[GraphSpec]
) -> dict[str, CanvasSet]:
    infos = {item.filename: item for item in archive.infolist()}
    if infos[INDEX].file_size > MAX_INDEX_BYTES:
        raise ValueError(f"{INDEX} has more than {MAX_INDEX_BYTES >> 20} MiB")
    if sum(item.file_size for item in infos.values()) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 30} GiB unpacked")
    index = parse_json(archive.read(INDEX))
    if index["version"] != VERSION:
        raise CalibrationError(
            f"{path} was written by another version of dlm-edge: delete it, and the next export "
            "with --canvases records it again"
        )
    _check_owner(path, index["owner"], owner)
    arrays = [
        _array(archive, number, dtype, shape)
        for number, (dtype, shape) in enumerate(index["arrays"])
    ]
    shapes = {spec.key: spec for spec in specs}
    return {
        name: CanvasSet(
            items=tuple(_canvases(content["items"], arrays, shapes)),
            model_sha256=content["model_sha256"],
            recipe=content["recipe"],
        )
        for name, content in index["sets"].items()
    }


def _check_owner(path: Path, found: Owner, wanted: Owner) -> None:
    """Raises CalibrationError naming the first thing that differs."""
    for name, value in json.loads(json.dumps(dict(wanted))).items():
        if found.get(name) != value:
            raise CalibrationError(
                f"{path} was recorded with another {name}: name another file with --canvases, or "
                "delete this one to have it recorded again"
            )


def _array(archive: zipfile.ZipFile, number: int, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype not in DTYPES:
        raise ValueError(f"array {number} has dtype {dtype!r}")
    return np.frombuffer(archive.read(f"arrays/{number}"), dtype).reshape(shape)


def _canvases(
    items: Sequence[Mapping[str, Any]],
    arrays: Sequence[np.ndarray],
    shapes: Mapping[GraphKey, GraphSpec],
) -> Iterator[RecordedRun]:
    """Yields canvases, each held to its graph's inputs."""
    for item in items:
        spec = shapes[graph_key(item["graph"], item["dims"])]
        held = {name: arrays[at[0]][: at[1]] for name, at in item["inputs"].items()}
        caches = {tensor.name: tensor.shape[0] for tensor in spec.inputs if tensor.cache}
        wanted = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in spec.inputs}
        found = {
            name: (array.dtype.name, (max(len(array), caches.get(name, 0)), *array.shape[1:]))
            for name, array in held.items()
        }
        if found != wanted:
            raise ValueError(f"a canvas has not the inputs of graph {spec.name}")
        if item["source"] not in SOURCES:
            raise ValueError(f"a canvas comes from {item['source']!r}")
        committing = np.zeros(spec.rows, bool)
        committing[item["committing"]] = True
        yield RecordedRun(
            spec=spec,
            inputs=Inputs(held, caches),
            mask_ratio=float(item["mask_ratio"]),
            progress=float(item["progress"]),
            committing=committing,
            weight=float(item["weight"]),
            source=item["source"],
            rest=float(item["rest"]),
        )
