"""Turns committed tokens into text as they come: no broken characters, no half stop strings.

A token may hold part of a UTF-8 character, and a text may end in what could become a stop string:
both are held back until it is clear what they are. Knows no model; it is handed the tokenizer's
`decode`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
"""What decoders put for bytes that are not a character (yet)."""
_LEFT_CONTEXT = 8
"""Tokens before the new ones that are decoded with them: a decoder may look to the left."""
_REANCHOR = 64


class TextStream:
    """The text of one generation, growing."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        """Starts behind a prompt.

        Args:
            decode: ids to text, special tokens left out.
            prompt_ids: tokens before the generated ones.
            stop: strings of which the first to appear ends the text, itself left out.
        """
        self._decode, self._stop = decode, tuple(stop)
        self._ids = list(prompt_ids)[-_LEFT_CONTEXT:]
        self._decoded = len(decode(self._ids)) if self._ids else 0
        self.text = ""
        """Everything decoded so far; what is held back stands at its end."""
        self._sent = 0
        self.stopped = False
        """True once a stop string has appeared; `text` ends before it."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes committed tokens; returns the text that is now certain (perhaps none)."""
        if self.stopped:
            return ""
        self._ids.extend(token_ids)
        text = self._decode(self._ids)
        certain = len(text) - text.endswith(_INCOMPLETE)
        if certain > self._decoded:
            self.text += text[self._decoded : certain]
            self._decoded = certain
        if certain == len(text) and len(self._ids) > _REANCHOR:
            self._ids = self._ids[-_LEFT_CONTEXT:]
            self._decoded = len(self._decode(self._ids))
        self._cut_at_stop()
        return self._send(len(self.text) - self._num_held())

    def flush(self) -> str:
        """Returns what is still held back: the text has ended."""
        if not self.stopped:
            self.text += self._decode(self._ids)[self._decoded :]
            self._decoded = len(self._decode(self._ids))
            self._cut_at_stop()
        return self._send(len(self.text))

    def _send(self, end: int) -> str:
        new = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def _cut_at_stop(self) -> None:
        # A stop string never begins in what was sent: every possible beginning was held back.
        found = [at for stop in self._stop if (at := self.text.find(stop, self._sent)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def _num_held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        if self.stopped:
            return 0
        return max(
            (
                size
                for stop in self._stop
                for size in range(1, len(stop))
                if self.text.endswith(stop[:size])
            ),
            default=0,
        )
