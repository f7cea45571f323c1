"""Stop strings in a text that comes in pieces: the first one to appear ends it.

What could become a stop string is held back, so that none is ever shown, not even in part.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """The text of one generation, growing, with an eye on its stop strings."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Starts an empty text; `stop` strings are not empty."""
        self._stop = tuple(stop)
        self._sent = 0
        self.text = ""
        """All text up to the stop string; what is held back stands at its end."""
        self.stopped = False
        """True once a stop string has appeared."""

    def push(self, text: str) -> str:
        """Takes the next piece; returns what is now certain (perhaps nothing)."""
        if self.stopped:
            return ""
        self.text += text
        # A stop string never begins in what was sent: every possible beginning was held back.
        found = [at for stop in self._stop if (at := self.text.find(stop, self._sent)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True
            return self.flush()
        return self._send(len(self.text) - self._num_held())

    def flush(self) -> str:
        """Returns what is still held back: the text has ended."""
        return self._send(len(self.text))

    def _send(self, end: int) -> str:
        new = self.text[self._sent : end]
        self._sent += len(new)
        return new

    def _num_held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        sizes = (
            size
            for stop in self._stop
            for size in range(1, len(stop))
            if self.text.endswith(stop[:size], self._sent)
        )
        return max(sizes, default=0)
