"""The decoding rule of models that write from left to right, shared by families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..decoding import DecodingRule
from ..ops.unmask.contract import Kind, Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken(DecodingRule):
    """Commits one token per run, from left to right."""

    name: ClassVar[str] = "next_token"
    swept: ClassVar[bool] = True

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.QUOTA)
