"""Token shards: text turned into one memory-mapped stream of token ids, and kept for later runs.

Stream: `<eos> doc1 <eos> doc2 …`, or what a checkpoint has around documents. A shard folder holds
`{train,valid}.bin` (uint16 or uint32, native little-endian), `{train,valid}.offsets` (int64: where
each document begins) and `index.json`. Its name is a hash of everything that shaped it, so it is
reused exactly while source, tokenizer and split stay the same. It appears whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import DataError, brief
from ...runtime.files import parse_json
from ...runtime.text.framing import Framing
from ..files import new_folder, remove_unfinished
from .encode import Encoded, encoded, num_workers_for
from .sources import TextSource, fingerprint
from .tokenizer import EOS_TOKEN, vocab_size_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT_VERSION = 2
"""Raise it when equal sources give other tokens, or another held-out part."""
_SHAPED_BY = (
    *("format_version", "source_sha256", "tokenizer_sha256", "valid_percent"),
    *("start_ids", "eos_token_id"),  # where they are not `<|endoftext|>`
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStream:
    """Token ids of many documents, end to end."""

    tokens: np.ndarray
    """(N,) uint16 or uint32, usually memory-mapped."""
    starts: np.ndarray
    """(D,) int64, ascending: where each document begins, start tokens included."""
    sha256: str
    """Of the text, tokenizer and split that it came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What a run trains on and what it is measured on."""

    train: TokenStream
    valid: TokenStream
    note: str
    """How the held-out part was chosen, for the log."""


def prepare(
    source: TextSource,
    valid: TextSource | None,
    tokenizer: Tokenizer,
    cache: Path,
    framing: Framing,
    *,
    context: int,
    valid_percent: float,
    num_workers: int | None = None,
) -> Corpus:
    """Tokenises a source once, and opens the result.

    Args:
        valid: text to measure on; None splits `valid_percent` of the documents off by hash.
        context: tokens of a training sequence; both parts must hold at least that many.
        valid_percent: share of documents held out when `valid` is None.
        num_workers: processes that tokenise; None takes one per usable core.

    Raises:
        DataError: if a part is shorter than one sequence, or a source cannot be read.
    """
    if valid is not None:
        train = _open(_shard(source, tokenizer, cache, framing, 0.0, num_workers), "train")
        held = _open(_shard(valid, tokenizer, cache, framing, 0.0, num_workers), "train")
        corpus = Corpus(train=train, valid=held, note="held-out text given")
    else:
        folder = _shard(source, tokenizer, cache, framing, valid_percent, num_workers)
        train, held = _open(folder, "train"), _open(folder, "valid")
        note = f"{valid_percent:g} % of the documents held out by hash"
        if min(len(train.tokens), len(held.tokens)) < context:
            whole = _open(_shard(source, tokenizer, cache, framing, 0.0, num_workers), "train")
            _require(whole, 2 * context, "text", f"two sequences of {context}, one held out")
            train, held = split_tail(whole, valid_percent, context)
            note = f"too few documents to split; last {len(held.tokens)} tokens held out"
        corpus = Corpus(train=train, valid=held, note=note)
    for name, stream in (("training text", corpus.train), ("held-out text", corpus.valid)):
        _require(stream, context, name, f"one sequence of {context}")
    return corpus


def _require(stream: TokenStream, num_tokens: int, name: str, wanted: str) -> None:
    if len(stream.tokens) < num_tokens:
        raise DataError(
            f"the {name} has {len(stream.tokens)} tokens, shorter than {wanted}; give more text or "
            "a smaller --context"
        )


def split_tail(
    stream: TokenStream, percent: float, context: int
) -> tuple[TokenStream, TokenStream]:
    """Cuts the last `percent` of a stream (one sequence at least) off as held-out part."""
    size = max(context, int(len(stream.tokens) * percent / 100))
    cut = max(0, len(stream.tokens) - size)
    before, after = stream.starts[stream.starts < cut], stream.starts[stream.starts >= cut] - cut
    sha = stream.sha256
    return (
        TokenStream(tokens=stream.tokens[:cut], starts=before, sha256=sha),
        TokenStream(tokens=stream.tokens[cut:], starts=after, sha256=sha),
    )


def _shard(
    source: TextSource,
    tokenizer: Tokenizer,
    cache: Path,
    framing: Framing,
    percent: float,
    num_workers: int | None,
) -> Path:
    serialized = tokenizer.to_str()
    facts = {
        "format_version": FORMAT_VERSION,
        "source_sha256": fingerprint(source),
        "tokenizer_sha256": hashlib.sha256(serialized.encode()).hexdigest(),
        "valid_percent": percent,
        **_framing_facts(framing, tokenizer),
    }
    folder = cache / "shards" / _sha256(facts)[:32]
    remove_unfinished(cache / "shards")
    if not folder.is_dir():
        with _full_disk_explained(cache), new_folder(folder) as beside:
            counts = _write_parts(
                beside, source, tokenizer, serialized, framing, percent, num_workers
            )
            index = {**facts, **counts, "files": [str(p) for p in source.files], "hub": source.hub}
            (beside / "index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


@contextmanager
def _full_disk_explained(cache: Path) -> Iterator[None]:
    """Turns the fault of a full disk or quota into a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"no room for prepared data in {cache} ({error.strerror}): delete old folders in "
            f"{cache / 'shards'}, or choose another with --cache-dir or XDG_CACHE_HOME"
        ) from error


def _sha256(facts: Mapping[str, Any]) -> str:
    """Returns the SHA-256 (hex) of what shaped a shard; further keys are left out."""
    shaped = {name: facts[name] for name in _SHAPED_BY if name in facts}
    return hashlib.sha256(json.dumps(shaped, sort_keys=True).encode()).hexdigest()


def _framing_facts(framing: Framing, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is around documents, where it is not the `<|endoftext|>` of our own models."""
    eos = tokenizer.token_to_id(EOS_TOKEN)
    if framing.start_ids == (eos,) == (framing.eos_token_id,):
        return {}
    return {"start_ids": list(framing.start_ids), "eos_token_id": framing.eos_token_id}


def _write_parts(
    beside: Path,
    source: TextSource,
    tokenizer: Tokenizer,
    serialized: str,
    framing: Framing,
    percent: float,
    num_workers: int | None,
) -> dict[str, Any]:
    dtype = "uint16" if vocab_size_of(tokenizer) <= 1 << 16 else "uint32"
    workers = num_workers_for(source, num_workers)
    names = ("train", "valid")
    parts = [_Part(beside, name) for name in names]
    try:
        for both in encoded(source, serialized, framing, percent, workers, dtype):
            for part, found in zip(parts, both, strict=True):
                part.append(found)
    finally:
        for part in parts:
            part.close()
    return {
        "dtype": dtype,
        "num_tokens": {p.name: p.num_tokens for p in parts},
        "num_documents": {p.name: p.num_documents for p in parts},
        "offsets": {p.name: f"{p.name}.offsets" for p in parts},
    }


class _Part:
    """One growing token file and the file of its document offsets."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.num_tokens, self.num_documents = name, 0, 0
        self._tokens: IO[bytes] = (folder / f"{name}.bin").open("wb")
        self._offsets: IO[bytes] = (folder / f"{name}.offsets").open("wb")

    def append(self, found: Encoded) -> None:
        """Adds tokens, and where documents begin in them."""
        self._offsets.write((self.num_tokens + found.starts).astype("<i8").tobytes())
        self._tokens.write(found.tokens.tobytes())
        self.num_tokens += len(found.tokens)
        self.num_documents += len(found.starts)

    def close(self) -> None:
        self._tokens.close()
        self._offsets.close()


def _open(folder: Path, name: str) -> TokenStream:
    try:
        index = parse_json((folder / "index.json").read_text(encoding="utf-8"))
        size, documents_ = index["num_tokens"][name], index["num_documents"][name]
        tokens = _map(folder / f"{name}.bin", index["dtype"], size)
        starts = _map(folder / f"{name}.offsets", "<i8", documents_)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: damaged token shard ({brief(error, 200)}); delete this folder"
        ) from error
    return TokenStream(tokens=tokens, starts=starts, sha256=_sha256(index))


def _map(path: Path, dtype: str, size: int) -> np.ndarray:
    if path.stat().st_size != size * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} has another size than its index says")
    return np.memmap(path, dtype, mode="r") if size else np.empty(0, dtype)
