"""The text that a model is calibrated on, and the other documents that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import CalibrationError
from ...runtime.text.framing import Framing
from ...runtime.text.tokenizer import Tokenizer
from ...train.data.sources import documents, find_source

MAX_DOCUMENTS = 512
"""Read of a file at most: calibration takes a sample, not a corpus."""
MIN_HELD_OUT_TOKENS = 64
"""Fewer would measure nothing."""


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
    found: tuple[Path, str], data: Path | None, tokenizer: Tokenizer, framing: Framing
) -> Texts:
    """Reads documents; every other one is held out, unless `data` names another text for that.

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
    found_ids = _ids(path, tokenizer, framing)
    if data is not None:
        calibration, held_out = found_ids, _ids(data, tokenizer, framing)
        source += f"; measured on --data {data.name}"
    else:
        calibration, held_out = found_ids[0::2], found_ids[1::2]
        source += "; measured on every other document of it"
    if not calibration or sum(map(len, held_out)) < MIN_HELD_OUT_TOKENS:
        raise CalibrationError(
            f"{path.name} has too few documents ({len(found_ids)}) to calibrate on some and "
            "measure on others: give a longer --calibration-data (in a .txt file, documents are "
            "between <|endoftext|>), or another text with --data"
        )
    return Texts(calibration=tuple(calibration), held_out=tuple(held_out), source=source)


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


def _ids(path: Path, tokenizer: Tokenizer, framing: Framing) -> list[np.ndarray]:
    texts = islice(documents(find_source(str(path))), MAX_DOCUMENTS)
    found = (tokenizer.encode(item) for item in texts)
    return [np.array(framing.document(ids), np.int32) for ids in found if ids]
