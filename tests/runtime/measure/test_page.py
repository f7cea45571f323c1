"""The HTML page of reports: escaped, self-contained, written whole or not at all."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from dlm_edge.runtime.errors import DlmError
from dlm_edge.runtime.measure.page import Page


class Drawing:
    def savefig(self, fname: Any, **options: Any) -> None:
        assert options["format"] == "svg"
        fname.write('<?xml version="1.0"?>\n<svg><g id="a"/><use xlink:href="#a"/></svg>')


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page() -> Page:
    made = Page("A <model> & more")
    made.heading("Size")
    made.paragraph("<script>alert(1)</script>", kind="warning")
    made.table(["part", "MiB"], [["<weights>", 1.5]])
    made.figure(Drawing(), "one")
    made.figure(Drawing(), "two")
    return made


def test_every_text_is_escaped_and_every_tag_closed():
    text = page().render()
    assert "<script>" not in text
    assert "&lt;weights&gt;" in text
    tags = Tags()
    tags.feed(text)
    assert tags.open == []


def test_drawings_of_one_page_have_ids_of_their_own_and_no_prologue():
    text = page().render()
    tags = Tags()
    tags.feed(text)
    assert len(tags.ids) == len(set(tags.ids)) == 2
    assert all(f'xlink:href="#{name}"' in text for name in tags.ids)
    assert "<?xml" not in text


def test_nothing_is_loaded_from_elsewhere():
    text = page().render()
    assert "http" not in text
    assert "src=" not in text


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path):
    with pytest.raises(DlmError, match="choose another place"):
        page().write(tmp_path / "missing" / "page.html")
    page().write(tmp_path / "page.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_wide_tables_and_drawings_scroll_and_a_dark_screen_gets_a_dark_page():
    page = Page("t")
    page.table(["a", "b"], [["c", 1]])
    text = page.render()
    assert '<div class="wide"><table>' in text
    assert ".wide { overflow-x: auto }" in text
    assert "@media (prefers-color-scheme: dark)" in text
