"""Makes the tokenizer of a training run: byte-level BPE, characters, or an existing file.

One that is trained here holds two special tokens: `<|endoftext|>` (document separator and start
token) and `<|mask|>`. An existing one gets those that the model needs and it lacks. Encoding and
decoding at run time is `runtime/text/tokenizer.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import CheckpointError, ConfigError, DataError, brief
from ...runtime.files import parse_json
from ...runtime.text.documents import pieces_of
from ..checkpoints.gguf import SUFFIX, read_gguf
from ..files import write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"
_SPECIAL = (EOS_TOKEN, MASK_TOKEN)
UNKNOWN_TOKEN = "<|unknown|>"
"""Only in character vocabularies: a character that the training text does not have."""

_LONG_RUN = re.compile(r"\S{256}|\s{256}")
"""Longer runs are no words of a language; a BPE is not trained on what is in them as a whole."""
_MAX_PART = 1 << 15
"""Characters of a text that a BPE is trained on at once."""

MIN_BPE_VOCAB = 256 + 2
"""Every byte and the two special tokens."""


def make_tokenizer(
    kind: str,
    vocab_size: int,
    texts: Iterable[str],
    cache: Path,
    tokens: Sequence[str] = _SPECIAL,
) -> Tokenizer:
    """Returns the tokenizer that `--tokenizer` asks for.

    Args:
        vocab_size: size wanted for "bpe", special tokens included.
        cache: file that holds or will hold the tokenizer trained on these texts.
        tokens: special tokens that an existing tokenizer gets if it lacks them.

    Raises:
        ConfigError: if `vocab_size` cannot hold all bytes, or `kind` is no file.
        DataError: if the file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    if kind not in ("bpe", "char"):
        return load_tokenizer(Path(kind).expanduser(), tokens)
    if cache.exists():
        return Tokenizer.from_file(str(cache))
    tokenizer = train_bpe(texts, vocab_size) if kind == "bpe" else make_char(texts)
    write_text(cache, tokenizer.to_str())
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE: any text encodes, and decodes to itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_BPE_VOCAB:
        raise ConfigError(
            f"--vocab-size {vocab_size}: a byte-level vocabulary needs at least {MIN_BPE_VOCAB}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(_short_words(texts), trainer)
    return tokenizer


def _short_words(texts: Iterable[str]) -> Iterator[str]:
    """Yields texts in parts, cut within runs that have no seam between words.

    Training takes time in the square of a word's length; it reads 256 texts ahead.
    """
    for text in texts:
        for part, _ in pieces_of(text, limit=_MAX_PART):
            start = 0
            for run in _LONG_RUN.finditer(part):
                yield part[start : run.end()]
                start = run.end()
            yield part[start:]


def make_char(texts: Iterable[str]) -> Tokenizer:
    """Makes a vocabulary of the characters that occur; others become `<|unknown|>`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    specials = (*_SPECIAL, UNKNOWN_TOKEN)
    vocab = {token: index for index, token in enumerate((*specials, *sorted(characters)))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return tokenizer


def load_tokenizer(path: Path, tokens: Sequence[str] = _SPECIAL) -> Tokenizer:
    """Reads a tokenizer as training needs it: the same ids for a text every time, and all of them.

    Stored truncation, padding and dropout are removed, the special tokens that it lacks are added
    and those that are not marked as special are marked. Each change is a line on stderr.

    Args:
        path: A tokenizer.json, the folder that holds one, or a GGUF file.

    Raises:
        ConfigError: There is no such file.
        DataError: The file is not a tokenizer.
        CheckpointError: The GGUF file cannot be read.
    """
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"--tokenizer {path}: wanted bpe, char or an existing tokenizer.json")
    try:
        if path.suffix == SUFFIX:
            stored = read_gguf(path, tensors=False).tokenizer_json
        else:
            stored = path.read_text("utf-8")
        return prepared_tokenizer(stored, tokens)
    except CheckpointError:
        raise
    except Exception as error:
        # The Rust reader raises bare Exception.
        raise DataError(f"{path}: not a tokenizer.json ({brief(error, 200)})") from error


def prepared_tokenizer(stored: str, tokens: Sequence[str]) -> Tokenizer:
    """Makes a tokenizer of a tokenizer.json as `load_tokenizer` does."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(_without_surprises(stored))
    missing = [token for token in tokens if tokenizer.token_to_id(token) is None]
    if missing:
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in missing])
        print(f"added to the tokenizer: {', '.join(missing)}", file=sys.stderr)
    return tokenizer


def needed_tokens(framing: Mapping[str, Any], *, mask: bool) -> list[str]:
    """Names the special tokens that a tokenizer must have.

    Args:
        mask: Whether the family's canvases hold masks.
    """
    ends = [] if "eos_token_id" in framing else [EOS_TOKEN]
    return [*ends, *([MASK_TOKEN] if mask and "mask_token_id" not in framing else [])]


def _without_surprises(stored: str) -> str:
    """Returns a tokenizer.json without what changes the ids of a text or reads tokens out of it."""
    tokenizer = parse_json(stored)
    places = (
        ("truncation", tokenizer),
        ("padding", tokenizer),
        ("dropout", tokenizer.get("model") or {}),
    )
    removed = [name for name, place in places if place.get(name)]
    for name, place in places:
        if place.get(name):
            place[name] = None
    marked = [
        token
        for token in tokenizer.get("added_tokens") or ()
        if token["content"] in _SPECIAL and not token["special"]
    ]
    for token in marked:
        token.update(special=True, normalized=False)
    if removed:
        print(f"removed from the tokenizer: its {' and '.join(removed)}", file=sys.stderr)
    if marked:
        names = ", ".join(token["content"] for token in marked)
        print(f"marked as special in the tokenizer: {names}", file=sys.stderr)
    return json.dumps(tokenizer, ensure_ascii=False) if removed or marked else stored


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """Returns how many rows an embedding needs: the largest id plus one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def special_ids(tokenizer: Tokenizer, framing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the special ids of a model that has this tokenizer, as options of its family.

    Args:
        framing: What a checkpoint says of `eos_token_id`, `start_ids`, `end_ids` and
            `mask_token_id`; None: `<|endoftext|>` is before each document and ends it.
    """
    mask = tokenizer.token_to_id(MASK_TOKEN)
    own = {} if mask is None else {"mask_token_id": mask}
    found = {"eos_token_id": tokenizer.token_to_id(EOS_TOKEN), **own, **(framing or {})}
    if found["eos_token_id"] is None:
        raise DataError(f"the tokenizer has no {EOS_TOKEN}; make it with --tokenizer")
    return found


def encode_plain(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts without adding special tokens and without reading any out of the text."""
    # A document that spells `<|mask|>` is text about masks, not a mask.
    tokenizer.encode_special_tokens = True
    return [item.ids for item in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def tokenizer_cache(cache: Path, source_sha256: str, kind: str, vocab_size: int) -> Path:
    """Returns where the tokenizer that is trained on a source is kept."""
    size = f"-{vocab_size}" if kind == "bpe" else ""
    return cache / "tokenizers" / f"{source_sha256[:32]}-{Path(kind).name}{size}.json"
