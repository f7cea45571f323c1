"""The text that a model is calibrated on, and the other documents that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import CalibrationError
from ...runtime.text.chat_template import ChatTemplate
from ...runtime.text.framing import Framing
from ...runtime.text.tokenizer import Tokenizer
from ...train.data.sources import documents, find_source

MAX_DOCUMENTS = 512
"""Read of a file at most: calibration takes a sample, not a corpus."""
MIN_HELD_OUT_TOKENS = 64
"""Fewer would measure nothing."""
MESSAGE_CHARS = 400
"""Of a message, where a document becomes a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Documents in ids, each (L,) int32 with the start token first."""

    calibration: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]
    source: str
    """Where they come from, in words without paths of this machine."""

    def stream(self, num_tokens: int) -> np.ndarray:
        """Returns at most so many held-out tokens, document after document."""
        return np.concatenate(self.held_out)[:num_tokens]


def find_text(given: Path | None, config: Mapping[str, Any]) -> tuple[Path, str] | None:
    """Returns the text to calibrate on and what it is, or None.

    That is the text given, else the one that the checkpoint's training was validated on, if it is
    plain text and still where training found it.
    """
    if given is not None:
        return given, f"--calibration-data {given.name}"
    settings = (config.get("training") or {}).get("settings") or {}
    named = settings.get("valid")
    if isinstance(named, str) and Path(named).suffix == ".txt" and Path(named).is_file():
        return Path(named), f"the text that training was validated on, {Path(named).name}"
    return None


def read_texts(
    found: tuple[Path, str],
    data: Path | None,
    tokenizer: Tokenizer,
    framing: Framing,
    chat: ChatTemplate | None = None,
) -> Texts:
    """Reads documents; every other one is held out, unless `data` names another text for that.

    A model that chats is calibrated on every other document as a conversation: the tokens around
    messages lead to activations that plain text does not have. Losses are measured on plain text.

    Raises:
        DataError: A file cannot be read.
        CalibrationError: Too little text, or one text for both.
    """
    path, source = found
    if data is not None and _same_file(path, data):
        raise CalibrationError(
            f"--data {data.name} is what would be calibrated on, where no loss can be measured: "
            "leave --data out, so that every other document is held out, or name another text"
        )
    own = _documents(path)
    if data is not None:
        calibration, others = own, _documents(data)
        source += f"; measured on --data {data.name}"
    else:
        calibration, others = own[0::2], own[1::2]
        source += "; measured on every other document of it"
    plain = (tokenizer.encode(text) for text in others)
    held_out = tuple(np.array(framing.document(ids), np.int32) for ids in plain if ids)
    if not calibration or sum(map(len, held_out)) < MIN_HELD_OUT_TOKENS:
        raise CalibrationError(
            f"{path.name} has too few documents ({len(own)}) to calibrate on some and "
            "measure on others: give a longer --calibration-data (in a .txt file, documents are "
            "between <|endoftext|>), or another text with --data"
        )
    ids = (
        tokenizer.encode_pieces(_conversation(text, chat))
        if chat is not None and number % 2
        else framing.document(tokenizer.encode(text))
        for number, text in enumerate(calibration)
    )
    return Texts(
        calibration=tuple(np.array(item, np.int32) for item in ids),
        held_out=held_out,
        source=source,
    )


def require_tokens(found: int, allowed: int, blocks: Iterable[int | None]) -> None:
    """Raises CalibrationError if fewer tokens are allowed than one block of each size holds."""
    largest = max((block for block in blocks if block), default=1)
    if found == allowed < largest:
        raise CalibrationError(
            f"--loss-tokens {allowed} is fewer than a block of {largest} that texts are decoded or "
            f"filled by, where loss is measured, too: allow {largest} or more"
        )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # reading it reports that it is missing
        return False


def _documents(path: Path) -> list[str]:
    return [text for text in islice(documents(find_source(str(path))), MAX_DOCUMENTS) if text]


def _conversation(text: str, chat: ChatTemplate) -> Iterator[tuple[str, bool]]:
    """Yields the pieces of a conversation that a document is cut into: user and model in turn."""
    yield chat.begin, True
    if chat.system is not None and chat.default_system is not None:
        yield chat.system[0], True
        yield chat.default_system, False
        yield chat.system[1], True
    for number, start in enumerate(range(0, len(text), MESSAGE_CHARS)):
        before, behind = chat.assistant if number % 2 else chat.user
        yield before, True
        yield text[start : start + MESSAGE_CHARS], False
        yield behind, True
