"""The text around the messages of a conversation, as plain pieces: the member `chat.json`.

    begin
    system[0] text system[1]          if a system text is given, or there is a default one
    user[0] text user[1]              each turn
    assistant[0] answer assistant[1]
    assistant[0], or ask              at the end, for an answer to come

The desktop took the pieces off the tokenizer's own template and verified them; nothing is computed
here. Special tokens in the pieces are known by their names; a user's text never becomes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..bundle.bundle import Bundle
from ..errors import BundleError
from ..files import parse_json

CHAT_NAME = "chat.json"
MAX_PIECE = 1 << 16
"""Characters of one piece."""

Around = tuple[str, str]
"""The text before a message, and behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The pieces of one model's conversations."""

    begin: str
    """Opens every conversation."""
    system: Around | None
    """None: this model takes no system text."""
    user: Around
    assistant: Around
    """The first piece also asks for an answer, unless there is `ask`."""
    default_system: str | None
    """The system text unless one is given; None: there is none then."""
    stop: tuple[str, ...]
    """Names of the tokens that end an answer."""
    thoughts_end: str | None = None
    """What ends the thoughts in an answer, such as `</think>`: once the next turn begins, the
    answer is only what follows it. None: earlier answers stay as they were written."""

    ask: str | None = None
    """What asks for an answer where that is more than what is before an earlier one: with an empty
    thought, for example. None: it is the same."""

    @property
    def asking(self) -> str:
        """What is at the end of a conversation that waits for an answer."""
        return self.assistant[0] if self.ask is None else self.ask

    def to_json(self) -> dict[str, Any]:
        """Returns what the member holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> ChatTemplate:
        """Reads the member's content; raises BundleError naming what is wrong."""
        names = [item.name for item in fields(cls)]
        optional = {"thoughts_end", "ask"}
        if not isinstance(value, Mapping) or not set(names) - optional <= set(value) <= set(names):
            raise _damaged(f"must be an object with the keys {', '.join(names)}")
        default, stop = value["default_system"], value["stop"]
        if default is not None and (not _is_piece(default) or value["system"] is None):
            raise _damaged("default_system must be null or a text, and needs system")
        if not isinstance(stop, list | tuple) or not stop or not all(map(_is_piece, stop)):
            raise _damaged("stop must be a list of token names")
        system = None if value["system"] is None else _around(value["system"], "system")
        if not _is_piece(value["begin"]):
            raise _damaged("begin must be a text")
        thoughts_end = value.get("thoughts_end")
        if thoughts_end is not None and not (_is_piece(thoughts_end) and thoughts_end):
            raise _damaged("thoughts_end must be null or a text")
        ask = value.get("ask")
        if ask is not None and not _is_piece(ask):
            raise _damaged("ask must be null or a text")
        return cls(
            begin=value["begin"],
            system=system,
            user=_around(value["user"], "user"),
            assistant=_around(value["assistant"], "assistant"),
            default_system=default,
            stop=tuple(stop),
            thoughts_end=thoughts_end,
            ask=ask,
        )

    def kept(self, answer: str) -> str:
        """Returns what a later turn sees of an answer."""
        if self.thoughts_end is None or self.thoughts_end not in answer:
            return answer
        return answer.rpartition(self.thoughts_end)[2].lstrip("\n")


def read_chat_template(bundle: Bundle) -> ChatTemplate | None:
    """Reads a bundle's pieces; None if it has none. Raises BundleError if they are unsound."""
    if CHAT_NAME not in bundle.manifest.members:
        return None
    try:
        content = parse_json(bundle.member(CHAT_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged("cannot be read") from error
    return ChatTemplate.from_json(content)


def _is_piece(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PIECE


def _around(value: object, name: str) -> Around:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_piece, value)):
        raise _damaged(f"{name} must be two texts, those before and behind a message")
    return value[0], value[1]


def _damaged(what: str) -> BundleError:
    return BundleError(f"{CHAT_NAME} {what}; the bundle is damaged: export it again")
