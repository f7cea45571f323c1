"""Shows a canvas while it denoises: in place on a terminal, else one plain line per step.

Three states differ by glyph, and by colour where colour is welcome: committed
text is shown as it is, provisional text between « and », and each masked position
is one ░. Provisional tokens that the last step corrected have a colour of their own. Knows no
model and no tokenizer: it is handed a function from ids to text.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TextIO

from ..frames import COMMITTED, GIVEN, MASKED, PROVISIONAL, REVISED, CanvasView

_SGR = {
    GIVEN: "1", COMMITTED: "", PROVISIONAL: "33", REVISED: "35", MASKED: "90", "status": "2"
}  # fmt: skip
"""ANSI styles: bold, none, yellow, magenta, grey, dim."""
_GLYPHS = {"open": "«", "close": "»", "mask": "░", "newline": "↵", "dot": "·"}
_ASCII_GLYPHS = {"open": "<", "close": ">", "mask": "_", "newline": "|", "dot": "-"}
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

Cell = tuple[str, str]
"""A piece of text and the state it is shown in."""


class Watch:
    """Draws a canvas after every update; use as a context manager, so that the cursor returns."""

    def __init__(
        self,
        out: TextIO,
        decode: Callable[[Sequence[int]], str],
        *,
        delay: float = 0.0,
        environment: Mapping[str, str] = os.environ,
        size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
    ) -> None:
        """Chooses between redrawing in place and plain lines by what `out` is.

        Args:
            environment: NO_COLOR and TERM are read from it.
            size: asked before each drawing, so that a resized window is followed.
        """
        self._out, self._decode, self._delay, self._size = out, decode, delay, size
        self.live = out.isatty() and environment.get("TERM", "") != "dumb"
        self._colour = self.live and not environment.get("NO_COLOR")
        self._glyphs = _GLYPHS if _can_encode(out) else _ASCII_GLYPHS
        self._drawn: list[int] = []
        self.num_steps = 0

    def __enter__(self) -> Watch:
        if self.live:
            self._write("\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        """Wipes the drawing and shows the cursor again, on errors and Ctrl-C too."""
        if self.live:
            self._write(f"{self._rewind()}\x1b[?25h")
            self._drawn = []

    def show(self, canvas: CanvasView, status: str = "") -> None:
        """Draws the canvas as it is now; `status` is a line about it."""
        self.num_steps += 1
        cells = self._cells(canvas)
        if self.live:
            self._redraw(cells, status)
        else:
            text = "".join(text for text, _ in cells).replace("\n", self._glyphs["newline"])
            self._write(f"step {self.num_steps:>3}: {text}\n")
        if self._delay:
            time.sleep(self._delay)

    def _cells(self, canvas: CanvasView) -> list[Cell]:
        """Turns the canvas into styled text, each stretch of unfinished positions in brackets."""
        glyphs, cells, is_open = self._glyphs, [], False
        for state, ids in canvas.runs():
            if (state in (PROVISIONAL, REVISED, MASKED)) != is_open:
                cells.append((glyphs["close" if is_open else "open"], MASKED))
                is_open = not is_open
            if state == MASKED:
                cells.append((glyphs["mask"] * len(ids), state))
            else:
                # Control characters out of a model must not reach the terminal.
                text = _CONTROL.sub(" ", self._decode(ids))
                if state in (PROVISIONAL, REVISED):
                    text = text.replace("\n", glyphs["newline"])
                cells.append((text, state))
        if is_open:
            cells.append((glyphs["close"], MASKED))
        return cells

    def _room(self) -> tuple[int, int]:
        """Columns and rows; 80 and 24 where the terminal gives none, as serial lines do."""
        columns, rows = self._size()
        return columns or 80, rows or 24

    def _redraw(self, cells: Iterable[Cell], status: str) -> None:
        columns, rows = self._room()
        # One column stays free: after a full line, terminals disagree on where the cursor is.
        columns = max(columns - 1, 2)
        lines = wrap(cells, columns)
        if status:
            lines += wrap([(f"{self._glyphs['dot'] * 2} {status}", "status")], columns)
        lines = lines[-max(rows - 1, 1) :]
        frame = "\n".join("".join(self._style(*cell) for cell in line) for line in lines)
        self._write(self._rewind() + frame)
        self._drawn = [sum(display_width(text) for text, _ in line) for line in lines]

    def _rewind(self) -> str:
        """Moves to the start of the last drawing and clears it, as the window is now.

        A narrower window has broken the drawn lines anew: their rows are counted under its width.
        """
        if not self._drawn:
            return "\r"
        columns = max(self._room()[0], 1)
        rows = sum(max(-(-width // columns), 1) for width in self._drawn) - 1
        return "\r" + (f"\x1b[{rows}A" if rows else "") + "\x1b[J"

    def _style(self, text: str, state: str) -> str:
        code = _SGR[state] if self._colour else ""
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def wrap(cells: Iterable[Cell], columns: int) -> list[list[Cell]]:
    """Breaks styled text into lines of at most `columns` columns, at spaces where there is one."""
    lines: list[list[Cell]] = [[]]
    used = 0
    for text, state in cells:
        for word in re.findall(r"\n|[^\S\n]*[^\s]*", text):
            if word == "\n":
                lines.append([])
                used = 0
                continue
            if used and used + display_width(word) > columns:
                lines.append([])
                used = 0
                word = word.lstrip()
            for piece in _chop(word, columns):
                if used and used + display_width(piece) > columns:
                    lines.append([])
                    used = 0
                _extend(lines[-1], piece, state)
                used += display_width(piece)
    return lines


def _extend(line: list[Cell], text: str, state: str) -> None:
    if line and line[-1][1] == state:
        line[-1] = (line[-1][0] + text, state)
    else:
        line.append((text, state))


def _chop(word: str, columns: int) -> list[str]:
    """Cuts a word that is wider than a line into pieces of at most `columns` columns."""
    pieces, piece, used = [], "", 0
    for character in word:
        width = display_width(character)
        if piece and used + width > columns:
            pieces.append(piece)
            piece, used = "", 0
        piece += character
        used += width
    return [*pieces, piece] if piece else pieces


def display_width(text: str) -> int:
    """Columns that `text` takes on a terminal: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.combining(character) or character == "\u200d":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _can_encode(out: TextIO) -> bool:
    try:
        "".join(_GLYPHS.values()).encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
