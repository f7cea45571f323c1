"""Sources of training text: which files, which documents, and a fingerprint of both.

A source is a `.txt` file (documents separated by `<|endoftext|>`), a `.jsonl` file (one object per
line), a `.parquet` file, a folder of those, or the name of a Hugging Face data set. This module
knows nothing of tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import ConfigError, DataError
from ...runtime.text.documents import file_sha256, read_documents

SUFFIXES = (".txt", ".jsonl", ".parquet")
"""Kinds of files that are read."""

HUB_PREFIX = "hf:"
"""Marks a data set name that would otherwise look like a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """Text documents somewhere."""

    files: tuple[Path, ...] = ()
    """Files in reading order; empty for a data set of the hub."""
    hub: str = ""
    """`name`, `name:configuration` or `name:configuration@split` of a Hugging Face data set."""
    text_field: str = "text"
    """Field or column that holds the text in `.jsonl`, `.parquet` and hub data sets."""

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.hub):
            raise ConfigError("a source needs either files or a data set name")

    @property
    def num_bytes(self) -> int:
        """Size of the files in bytes; 0 for a data set of the hub."""
        return sum(path.stat().st_size for path in self.files)


def find_source(where: str, text_field: str = "text") -> TextSource:
    """Says what `where` means: an existing path, or the name of a data set.

    Raises:
        DataError: if it looks like a path but nothing is there, or nothing in it can be read.
    """
    path = Path(where).expanduser()
    if where.startswith(HUB_PREFIX):
        return TextSource(hub=where.removeprefix(HUB_PREFIX), text_field=text_field)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise DataError(f"{where}: no .txt, .jsonl or .parquet file in this folder")
        return TextSource(files=tuple(files), text_field=text_field)
    if path.exists():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{where}: wanted .txt, .jsonl or .parquet, found {path.suffix or 'no suffix'!r}; "
                "rename or convert the file"
            )
        return TextSource(files=(path,), text_field=text_field)
    if path.suffix in (*SUFFIXES, ".json", ".csv", ".gz") or where.startswith((".", "/", "~")):
        raise DataError(f"{where}: no such file or folder; check the path given to --data")
    return TextSource(hub=where, text_field=text_field)


def fingerprint(source: TextSource) -> str:
    """Returns the SHA-256 (hex) of a source's content and of how it is read.

    A data set of the hub is identified by the fingerprint that `datasets` keeps.
    """
    digest = hashlib.sha256(source.text_field.encode())
    for path in source.files:
        digest.update(f"\0{path.suffix}\0{file_sha256(path)}".encode())
    if source.hub:
        digest.update(f"\0hub\0{source.hub}\0{_load_hub(source)._fingerprint}".encode())
    return digest.hexdigest()


def documents(source: TextSource) -> Iterator[str]:
    """Yields the documents, stripped of surrounding white space; empty ones are dropped.

    Raises:
        DataError: if a file is empty, not UTF-8, damaged or lacks the text field.
    """
    for raw in _raw_documents(source):
        text = raw.strip()
        if text:
            yield text


def _raw_documents(source: TextSource) -> Iterator[str]:
    if source.hub:
        yield from _column(_load_hub(source), source.text_field, source.hub)
        return
    for path in source.files:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; give a file with text")
        match path.suffix:
            case ".txt":
                yield from read_documents(path)
            case ".jsonl":
                yield from _read_jsonl(path, source.text_field)
            case ".parquet":
                yield from _read_parquet(path, source.text_field)
            case suffix:
                raise DataError(f"{path}: cannot read {suffix!r} files")


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _field_of_line(path, number, line, text_field)
    except UnicodeDecodeError as error:
        raise DataError(
            f"data file {path} is not UTF-8 ({error.reason}); convert it first"
        ) from error


def _field_of_line(path: Path, number: int, line: str, text_field: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not a JSON object ({error.msg}); fix the line") from None
    value = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(
            f"{path}:{number}: no text in field {text_field!r}, found {found}; give --text-field"
        )
    return value


def _datasets() -> Any:
    """Returns the `datasets` module, its log silenced: what fails is raised, in one line."""
    import datasets

    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    load_dataset = _datasets().load_dataset
    try:
        table = load_dataset("parquet", data_files=[str(path)], split="train", streaming=True)
        columns = table.column_names
    except Exception as error:
        # `datasets` passes on whatever its readers raise; all of it means an unreadable file here.
        raise DataError(f"{path}: not a readable parquet file ({_first_line(error)})") from error
    if columns is not None and text_field not in columns:
        raise DataError(
            f"{path}: no column {text_field!r}, found {sorted(columns)}; give --text-field"
        )
    yield from _column(table, text_field, str(path))


def _load_hub(source: TextSource) -> Any:
    """Loads a hub data set through `datasets`, which keeps its own cache."""
    load_dataset = _datasets().load_dataset
    if os.path.isdir(source.hub):
        name, config, split = source.hub, "", "train"
    else:
        name, _, split = source.hub.partition("@")
        name, _, config = name.partition(":")
    try:
        return load_dataset(name, config or None, split=split or "train")
    except Exception as error:
        # Network, name, configuration and split faults all arrive as different classes.
        raise DataError(
            f"{source.hub}: neither a local path nor a data set that could be loaded "
            f"({type(error).__name__}: {_first_line(error)}); check its name and the network"
        ) from error


def _column(table: Any, text_field: str, name: str) -> Iterator[str]:
    for record in table:
        value = record.get(text_field)
        if not isinstance(value, str):
            raise DataError(
                f"{name}: no text in column {text_field!r}, found {sorted(record)}; "
                "give --text-field"
            )
        yield value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
