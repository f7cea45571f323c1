"""One self-contained HTML page: text, tables and drawings, nothing loaded from elsewhere.

Knows no plotting library: a drawing is any figure that can save itself as SVG (matplotlib's can).
Reports of calibration and of profiling are made of it, so that they look alike.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..files import write_whole, writing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #8c959f; vertical-align: bottom }
.wide { overflow-x: auto } .verdict { font-weight: 600 }
figure { margin: 1rem 0 } figure svg { max-width: 100%; min-width: 34rem; height: auto }
figcaption, .note { color: #57606a; font-size: .9rem } .warning { color: #9a3412 }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117 } th, td { border-color: #30363d }
  figcaption, .note { color: #9198a1 } .warning { color: #ffa657 }
  figure .wide { background: #fff; border-radius: .4rem }
}
"""


class Figure(Protocol):
    """A drawing that can write itself, such as matplotlib's Figure."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Writes the drawing to a text stream."""
        ...


class Page:
    """Grows from top to bottom; every text is escaped."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Starts a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str, *, kind: str = "") -> None:
        """Adds a paragraph; `kind` is "", "note", "warning" or "verdict"."""
        mark = f' class="{html.escape(kind, quote=True)}"' if kind else ""
        self._parts.append(f"<p{mark}>{html.escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds a table; the first column is read as names, the others as figures."""
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
            "</div>"
        )

    def figure(self, figure: Figure, caption: str) -> None:
        """Draws a figure into the page as SVG, with a caption that also says it in words."""
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight")
        # Without the XML prologue; ids are made unique, for several drawings share one page.
        svg = text.getvalue()[text.getvalue().index("<svg") :]
        mark = f"f{len(self._parts)}-"
        svg = re.sub(r'(\bid="|"#|url\(#)', lambda found: found.group(0) + mark, svg)
        self._parts.append(
            f'<figure><div class="wide">{svg}</div><figcaption>{html.escape(caption)}</figcaption>'
            "</figure>"
        )

    def render(self) -> str:
        """Returns the whole page."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style></head>\n<body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Writes the page whole or not at all; DlmError if that fails."""
        with writing(path):
            write_whole(path, self.render())
