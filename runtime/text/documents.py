"""Reads plain-text corpora: the one place that says what a document is.

A `.txt` file is UTF-8, its documents stand between `<|endoftext|>` separators; white space around a
document is dropped, and so are empty documents. Training and evaluation read through this module,
so that both see the same documents. Knows no tokenizer.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

SEPARATOR = "<|endoftext|>"
_CHUNK = 1 << 22
"""Bytes read at a time: a corpus may be larger than memory."""


def read_documents(path: str | Path) -> Iterator[str]:
    """Yields the documents of one text file in their order, in bounded memory.

    Args:
        path: a UTF-8 text file; a byte order mark at its start is dropped.

    Raises:
        DataError: the file is missing, a folder, not UTF-8, or holds no document.
    """
    path = Path(path)
    pending, found = "", False
    for text in _read_chunks(path):
        *whole, pending = (pending + text).split(SEPARATOR)
        for document in filter(None, map(str.strip, whole)):
            found = True
            yield document
    if last := pending.strip():
        found = True
        yield last
    if not found:
        raise DataError(f"data file {path} holds no text; give a UTF-8 text file with documents")


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = held = 0
    try:
        with open(path, "rb") as file:
            while True:
                held = len(decoder.getstate()[0])
                chunk = file.read(_CHUNK)
                yield decoder.decode(chunk, final=not chunk)
                if not chunk:
                    return
                offset += len(chunk)
    except UnicodeDecodeError as error:
        # `start` counts from the bytes that the decoder still held from the chunk before.
        raise DataError(
            f"data file {path} is not UTF-8 at byte {offset - held + error.start}; convert it first"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read data file {path}: {error.strerror}") from error
