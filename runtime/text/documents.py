"""Reads plain-text corpora: the one place that says what a document is.

A `.txt` file is UTF-8, its documents are between `<|endoftext|>` separators; white space around a
document is dropped, and so are empty documents. Training and evaluation read through this module,
so that both see the same documents. A document may be larger than memory: it can be read as pieces.
Knows no tokenizer.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError

SEPARATOR = "<|endoftext|>"
_CHUNK = 1 << 22
"""Bytes read at a time: a corpus may be larger than memory."""
MAX_PIECE = 1 << 19
"""Characters of a piece at most."""
_SEAM = re.compile(r"(?<=\S)(?= [^\W\d_])")
"""Between a word and the space before the next one, where no tokenizer of words has a token."""
_SEAM_WINDOW = 1 << 12
"""Characters before the limit of a piece in which a seam is looked for."""


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    begins: bool
    """False: it continues the document of the piece before it."""


def read_pieces(path: str | Path) -> Iterator[Piece]:
    """Yields the documents of one text file as pieces, in bounded memory."""
    path = Path(path)
    pending, begins, found = "", True, False
    for text in _read_chunks(path):
        *ends, pending = (pending + text).split(SEPARATOR)
        for end in ends:
            for piece in pieces_of(end, begins=begins, limit=MAX_PIECE):
                found = True
                yield piece
            begins = True
        # The end of a piece that is followed by text may be white space, that of a document not.
        while len(pending := pending.lstrip() if begins else pending) > 2 * MAX_PIECE:
            end = _seam(pending, 0, MAX_PIECE)
            found = True
            yield Piece(pending[:end], begins)
            pending, begins = pending[end:], False
    for piece in pieces_of(pending, begins=begins, limit=MAX_PIECE):
        found = True
        yield piece
    if not found:
        raise DataError(f"data file {path} holds no text; give a UTF-8 text file with documents")


def pieces_of(text: str, *, begins: bool = True, limit: int = MAX_PIECE) -> Iterator[Piece]:
    """Yields a document, or the rest of one, as pieces; nothing if it is white space.

    Args:
        text: White space at its end is dropped, and at its start if it begins the document.
        begins: False if pieces of this document came before.
        limit: Characters of a piece at most.
    """
    text = text.strip() if begins else text.rstrip()
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= limit else _seam(text, start, limit)
        yield Piece(text[start:end], begins and start == 0)
        start = end


def by_document(pieces: Iterable[Piece]) -> Iterator[list[str]]:
    """Yields the texts of each document's pieces."""
    texts: list[str] = []
    for piece in pieces:
        if piece.begins and texts:
            yield texts
            texts = []
        texts.append(piece.text)
    if texts:
        yield texts


def joined(pieces: Iterable[Piece]) -> Iterator[str]:
    """Yields the documents that pieces are parts of."""
    return map("".join, by_document(pieces))


def _seam(text: str, start: int, limit: int) -> int:
    """Returns where a piece ends that begins at `start`: at a seam if there is one."""
    end = start + limit
    window = max(start + 1, end - _SEAM_WINDOW)
    return max((seam.start() for seam in _SEAM.finditer(text, window, end)), default=end)


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
