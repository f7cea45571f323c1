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
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import ConfigError, DataError, brief
from ...runtime.files import parse_json
from ...runtime.text.documents import Piece, file_sha256, joined, pieces_of, read_pieces

SUFFIXES = (".txt", ".jsonl", ".parquet")
"""Kinds of files that are read."""

_PARQUET_ROWS = 256
"""Rows read at once: a row may be a book."""

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
        return TextSource(files=_files_in(path), text_field=text_field)
    if path.exists():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{where}: wanted .txt, .jsonl or .parquet, found {path.suffix or 'no suffix'!r}; "
                "rename or convert the file"
            )
        return TextSource(files=(path,), text_field=text_field)
    if path.suffix in (*SUFFIXES, ".json", ".csv", ".gz") or where.startswith((".", "/", "~")):
        raise DataError(f"{where}: no such file or folder; check the path given to --data")
    return TextSource(hub=where, text_field=text_field)


def _files_in(folder: Path) -> tuple[Path, ...]:
    """Returns the files to read in a folder, and says on stderr how many others there are.

    Names that begin with a dot are other programs' notes: old drafts, attributes, caches.
    """
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    shown = [p for p in every if not any(n.startswith(".") for n in p.relative_to(folder).parts)]
    files = tuple(path for path in shown if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: no .txt, .jsonl or .parquet file in this folder")
    hidden, others = len(every) - len(shown), len(shown) - len(files)
    skipped = [f"{hidden} with a name or folder that begins with a dot"] if hidden else []
    skipped += [f"{others} of other kinds"] if others else []
    if skipped:
        print(f"{folder}: reads {len(files)} files, skips {' and '.join(skipped)}", file=sys.stderr)
    return files


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
    return joined(pieces(source))


def pieces(source: TextSource) -> Iterator[Piece]:
    """Yields the documents as pieces: a text file that is one document needs no more memory."""
    if source.hub:
        rows = enumerate(_load_hub(source), 1)
        field, hub = source.text_field, source.hub
        yield from _cut_up(_text_of(record, field, f"{hub}: row {row}") for row, record in rows)
        return
    for path in source.files:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; give a file with text")
        match path.suffix.lower():
            case ".txt":
                yield from read_pieces(path)
            case ".jsonl":
                yield from _cut_up(_read_jsonl(path, source.text_field))
            case ".parquet":
                yield from _cut_up(_read_parquet(path, source.text_field))
            case suffix:
                raise DataError(f"{path}: cannot read {suffix!r} files")


def _cut_up(texts: Iterable[str]) -> Iterator[Piece]:
    return (piece for text in texts for piece in pieces_of(text))


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    record = _record_of_line(f"{path}:{number}", line, text_field)
                    yield _text_of(record, text_field, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data file {path} is not UTF-8 ({error.reason}); convert it first"
        ) from error


def _record_of_line(where: str, line: str, text_field: str) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as error:  # also numbers too long, objects too deep
        reason = error.msg if isinstance(error, json.JSONDecodeError) else _first_line(error)
        raise DataError(f"{where}: not a JSON object ({reason}); fix the line") from None
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: wanted a JSON object with the field {text_field!r}, found "
            f"{type(record).__name__}; fix the line, or name another field with --text-field"
        )
    return record


def _text_of(record: Mapping[str, Any], text_field: str, where: str) -> str:
    """Returns the text of a record; raises DataError, which says where, if it has none."""
    if text_field not in record:
        raise DataError(
            f"{where}: no field {text_field!r}, found {sorted(record)}; rename it, or name the "
            "field with dlm-train's --text-field"
        )
    value = record[text_field]
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise DataError(
            f"{where}: wanted text in field {text_field!r}, found {found}; remove or mend it"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: field {text_field!r} holds half a character (a lone surrogate); "
                "remove or mend it"
            ) from None
    return value


def _datasets() -> Any:
    """Returns the `datasets` module, its log silenced: what fails is raised, in one line."""
    import datasets

    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    row = 0
    try:
        with ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                raise DataError(
                    f"{path}: no column {text_field!r}, found {sorted(columns)}; give --text-field"
                )
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
                for value in batch.column(text_field):
                    row += 1
                    record = {text_field: value.as_py()}
                    yield _text_of(record, text_field, f"{path}: row {row}")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable parquet file (after row {row}: {_first_line(error)}); "
            "make it again"
        ) from error


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


def _first_line(error: Exception) -> str:
    return brief((str(error).splitlines() or [type(error).__name__])[0], 200)
