"""The pictures of README.md against the figures that they are drawn from."""

import re

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks import charts

DRAWN = {
    "decode": lambda: charts.speed(charts.read("decode-small-int8")),
    "drafts": lambda: charts.drafts(charts.read_drafts()),
    "board": lambda: charts.board(charts.read("qwen-forecast-1.5b")),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("figures")
    result = CliRunner().invoke(charts.main, ["--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text("utf-8"))


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_that_is_kept_says_what_the_figures_say(fresh, name):
    assert texts(charts.FIGURES / f"{name}.svg") == texts(fresh / f"{name}.svg")


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_has_colours_for_a_dark_screen(fresh, name):
    for folder in (charts.FIGURES, fresh):
        assert charts.DARK in (folder / f"{name}.svg").read_text("utf-8")


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_has_every_bar_with_its_figure(name):
    bars = DRAWN[name]()
    found = [text.strip() for text in texts(charts.FIGURES / f"{name}.svg")]
    for label, value, _ in bars:
        assert label in found
        assert f"{value:,.0f}" in found


@pytest.mark.parametrize("name", DRAWN)
def test_who_cannot_see_a_picture_reads_its_figures(name):
    page = (charts.ROOT / "README.md").read_text("utf-8")
    (words,) = re.findall(rf"!\[([^\]]*)\]\(docs/figures/{name}\.svg\)", page)
    for _, value, _ in DRAWN[name]():
        assert f"{value:,.0f}" in words
