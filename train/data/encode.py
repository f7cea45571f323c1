"""Documents into token ids, by several processes; in order, whatever their number."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...runtime.process import usable_cores
from ...runtime.text.documents import Piece
from ...runtime.text.framing import Framing
from .sources import TextSource, pieces
from .tokenizer import encode_plain

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INLINE_BYTES = 2 << 20
"""Sources smaller than this are tokenised in this process: starting workers would take longer."""

_CHUNK_CHARACTERS = 1 << 19
"""Text handed to a worker at once."""


def is_held_out(beginning: str, percent: float) -> bool:
    """Says whether a document belongs to the held-out split, by the hash of its first piece."""
    value = int.from_bytes(hashlib.sha256(beginning.encode()).digest()[:8], "little")
    return value < percent / 100 * 2**64


class Encoded(NamedTuple):
    """Documents of one split, or parts of them, end to end."""

    tokens: np.ndarray
    """Token ids; an end token is before each document."""
    starts: np.ndarray
    """(D,) int64: positions in `tokens` where documents begin."""


class _Chunk(NamedTuple):
    pieces: list[Piece]
    held: list[bool]
    """Per piece: whether its document is held out."""


def _encode_chunk(
    tokenizer: Tokenizer, chunk: _Chunk, framing: Framing, dtype: str
) -> tuple[Encoded, Encoded]:
    """Returns the tokens of the training and of the held-out documents."""
    ids = encode_plain(tokenizer, [piece.text for piece in chunk.pieces])
    parts: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    starts: tuple[list[int], list[int]] = [], []
    sizes, separator = [0, 0], framing.separator
    for row, (_, begins), held in zip(ids, chunk.pieces, chunk.held, strict=True):
        before = separator if begins else ()
        if begins:
            starts[held].append(sizes[held] + len(before) - len(framing.start_ids))
        parts[held].append(np.array([*before, *row], dtype))
        sizes[held] += len(before) + len(row)
    train, valid = (
        Encoded(np.concatenate([np.empty(0, dtype), *rows]), np.array(found, np.int64))
        for rows, found in zip(parts, starts, strict=True)
    )
    return train, valid


_worker_tokenizer: Tokenizer | None = None
"""The tokenizer of a worker process, set once when the process starts."""


def _start_worker(serialized: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker process
    from tokenizers import Tokenizer

    _worker_tokenizer = Tokenizer.from_str(serialized)


def _work(chunk: _Chunk, framing: Framing, dtype: str) -> tuple[Encoded, Encoded]:
    assert _worker_tokenizer is not None
    return _encode_chunk(_worker_tokenizer, chunk, framing, dtype)


def encoded(
    source: TextSource, serialized: str, framing: Framing, percent: float, workers: int, dtype: str
) -> Iterator[tuple[Encoded, Encoded]]:
    """Yields the training and the held-out part of chunk after chunk.

    They are in the order of the documents, whatever the number of workers.
    """
    from tokenizers import Tokenizer
    from tqdm import tqdm

    chunks = _chunks(pieces(source), percent)
    with tqdm(desc="tokenise", unit="doc", file=sys.stderr, leave=False, disable=None) as bar:
        if workers <= 1:
            tokenizer = Tokenizer.from_str(serialized)
            for chunk in chunks:
                parts = _encode_chunk(tokenizer, chunk, framing, dtype)
                bar.update(sum(len(part.starts) for part in parts))
                yield parts
            return
        waiting: deque[Future[tuple[Encoded, Encoded]]] = deque()
        with ProcessPoolExecutor(workers, _process_context(), _start_worker, (serialized,)) as pool:
            for chunk in chunks:
                waiting.append(pool.submit(_work, chunk, framing, dtype))
                # Bounded, so that a source of any size fits in memory.
                if len(waiting) > 2 * workers:
                    yield _take(waiting, bar)
            while waiting:
                yield _take(waiting, bar)


def _take(waiting: deque[Future[tuple[Encoded, Encoded]]], bar: Any) -> tuple[Encoded, Encoded]:
    parts = waiting.popleft().result()
    bar.update(sum(len(part.starts) for part in parts))
    return parts


def _process_context() -> Any:
    # fork starts in milliseconds and needs no import; elsewhere than on Linux it is not safe.
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def num_workers_for(source: TextSource, asked: int | None) -> int:
    """Returns how many processes a source is worth; `asked` unless it is None."""
    if asked is not None:
        return asked
    return 1 if 0 < source.num_bytes < INLINE_BYTES else usable_cores()


def _chunks(found: Iterable[Piece], percent: float) -> Iterator[_Chunk]:
    chunk, size, held = _Chunk([], []), 0, False
    for piece in found:
        if piece.begins:
            held = is_held_out(piece.text, percent)
        chunk.pieces.append(piece)
        chunk.held.append(held)
        size += len(piece.text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = _Chunk([], []), 0
    if chunk.pieces:
        yield chunk
