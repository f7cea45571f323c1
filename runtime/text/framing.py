"""Which tokens are around a text: a start token in front, if the model knows one, and its end.

A model trained here has one token for both, which separates documents. A public model may have a
start token of its own or none, and other end tokens. Knows no tokenizer and no family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """The tokens around every text of one model."""

    start_ids: tuple[int, ...]
    """In front of a text; empty for a model that knows no start token."""
    eos_token_id: int
    """Ends a document."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Framing:
        """Reads it from config.json: without `start_ids`, the end of text is the start token."""
        eos, start = config["eos_token_id"], config.get("start_ids")
        return cls(start_ids=(eos,) if start is None else tuple(start), eos_token_id=eos)

    @property
    def separator(self) -> tuple[int, ...]:
        """What is in front of each document of a stream to train on; ends with `start_ids`."""
        end = (self.eos_token_id,)
        return end if self.start_ids == end else (*end, *self.start_ids)

    def prompt(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Returns a text to be continued; an empty one begins behind an end of text."""
        return (*self.start_ids, *ids) or (self.eos_token_id,)

    def document(self, ids: Iterable[int]) -> list[int]:
        """Returns a document to be read from its beginning, which others may follow."""
        if self.start_ids == (self.eos_token_id,):  # which ends the one before
            return [self.eos_token_id, *ids]
        return [*self.start_ids, *ids, self.eos_token_id]
