"""Documents into token ids, by several processes; in order, whatever their number."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.process import usable_cores
from .sources import TextSource, documents
from .tokenizer import encode_plain

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INLINE_BYTES = 2 << 20
"""Sources smaller than this are tokenised in this process: starting workers would take longer."""

_CHUNK_CHARACTERS = 1 << 19
"""Text handed to a worker at once."""


def is_held_out(text: str, percent: float) -> bool:
    """Says whether a document belongs to the held-out split: decided by its hash alone."""
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return value < percent / 100 * 2**64


Encoded = tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]
"""Tokens of the training and of the held-out documents; length of and split of every document."""


def _encode_chunk(
    tokenizer: Tokenizer, texts: list[str], eos: int, percent: float, dtype: str
) -> Encoded:
    ids = encode_plain(tokenizer, texts)
    held = np.array([is_held_out(text, percent) for text in texts], dtype=bool)
    lengths = np.array([len(row) + 1 for row in ids], dtype=np.int64)
    both = []
    for part in (False, True):
        rows = [np.array([eos, *row], dtype) for row, h in zip(ids, held, strict=True) if h == part]
        both.append(np.concatenate(rows) if rows else np.empty(0, dtype))
    return (both[0], both[1]), lengths, held


_worker_tokenizer: Tokenizer | None = None
"""The tokenizer of a worker process, set once when the process starts."""


def _start_worker(serialized: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker process
    from tokenizers import Tokenizer

    _worker_tokenizer = Tokenizer.from_str(serialized)


def _work(texts: list[str], eos: int, percent: float, dtype: str) -> Encoded:
    assert _worker_tokenizer is not None
    return _encode_chunk(_worker_tokenizer, texts, eos, percent, dtype)


def encoded(
    source: TextSource, serialized: str, eos: int, percent: float, workers: int, dtype: str
) -> Iterator[Encoded]:
    """Yields encoded chunks in the order of the documents, whatever the number of workers."""
    from tokenizers import Tokenizer
    from tqdm import tqdm

    chunks = _chunks(documents(source))
    with tqdm(desc="tokenise", unit="doc", file=sys.stderr, leave=False, disable=None) as bar:
        if workers <= 1:
            tokenizer = Tokenizer.from_str(serialized)
            for texts in chunks:
                yield _encode_chunk(tokenizer, texts, eos, percent, dtype)
                bar.update(len(texts))
            return
        waiting: deque[Future[Encoded]] = deque()
        with ProcessPoolExecutor(workers, _process_context(), _start_worker, (serialized,)) as pool:
            for texts in chunks:
                waiting.append(pool.submit(_work, texts, eos, percent, dtype))
                # Bounded, so that a source of any size fits in memory.
                if len(waiting) > 2 * workers:
                    yield _take(waiting, bar)
            while waiting:
                yield _take(waiting, bar)


def _take(waiting: deque[Future[Encoded]], bar: Any) -> Encoded:
    result = waiting.popleft().result()
    bar.update(len(result[1]))
    return result


def _process_context() -> Any:
    # fork starts in milliseconds and needs no import; elsewhere than on Linux it is not safe.
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def num_workers_for(source: TextSource, asked: int | None) -> int:
    """Returns how many processes a source is worth; `asked` where somebody said."""
    if asked is not None:
        return asked
    return 1 if 0 < source.num_bytes < INLINE_BYTES else usable_cores()


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
