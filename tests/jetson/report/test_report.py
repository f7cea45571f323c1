import copy
import json
import re
import sys

import pytest
from dlm_edge.jetson.profile.prediction import compare_with_forecast
from dlm_edge.jetson.report import drawings, report
from dlm_edge.jetson.report.compare import compare, read_run
from dlm_edge.jetson.report.report import write_comparison, write_page
from dlm_edge.jetson.report.table import lines
from dlm_edge.runtime.errors import DataError, DlmError

PLAN = {
    "target": "orin-nano", "mode": "25w", "tokens_per_nfe": 1.2, "warnings": ["one buffer is big"],
    "memory": {"weights": 20.0, "kv": 2.0, "activations": 8.0, "context": 0.0, "runtime": 60.0,
               "total": 90.0, "available": 5000.0},
    "graphs": [
        {"graph": "denoise", "dims": {"batch": 1, "rows": 32, "context": 128}, "step_ms": 2.0,
         "step_ms_uncaptured": 3.0, "outside_ms": 0.5, "tokens_per_s": 480.0, "watts": 7.0,
         "joules_per_token": 0.0125},
    ],
}  # fmt: skip
SWEEP = {
    "judge": None, "judge_sha256": None, "texts": 2, "planned": 4,
    "cells": [
        {"settings": {}, "threads": 1, "flags": "--rule threshold --threshold 0.5 --block 32 "
         "--threads 1", "tokens_per_s": 90.0, "tokens_per_nfe": 1.3, "ms_per_nfe": 10.0,
         "frontier": True, "quality": {"bits_per_char": 0.5, "half_width": 0.1, "entropy": 3.4,
                                       "repetition": 0.1, "num_texts": 2, "num_scored": 2}},
        {"settings": {}, "threads": 1, "flags": "--threads 1", "tokens_per_s": 80.0,
         "tokens_per_nfe": 1.1, "ms_per_nfe": 12.0, "frontier": False,
         "quality": {"bits_per_char": 0.7, "half_width": None, "entropy": 3.5, "repetition": 0.1,
                     "num_texts": 2, "num_scored": 1}},
        {"settings": {}, "threads": 2, "flags": "--threads 2", "tokens_per_s": 99.0,
         "tokens_per_nfe": 1.1, "ms_per_nfe": 9.0, "frontier": False},
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def full(record):
    found = copy.deepcopy(record) | {"sweep": SWEEP, "predicted": PLAN}
    found["comparison"] = list(compare_with_forecast(found, PLAN))
    return found


@pytest.fixture(scope="session")
def page(full, tmp_path_factory):
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(full, path)
    return path.read_text("utf-8")


def test_columns_stand_below_their_heads_however_long_a_quantity_is(full):
    table = list(lines(full))
    head = next(line for line in table if line.startswith("against the forecast"))
    rows = [line for line in table if "captured" in line and line is not head]
    assert rows
    assert {len(line) for line in rows} == {len(head)}


def test_the_page_loads_nothing_from_elsewhere(page):
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert "<script" not in page
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_plots_come_first_and_numbers_behind(page):
    assert page.count("<svg") == 7
    assert page.rindex("<svg") < page.index("<table")
    for heading in ("Where a text", "Predicted and measured", "Speed against quality", "Over time",
                    "Which layers", "What memory is for", "How long a graph run"):  # fmt: skip
        assert heading in page


def test_every_id_of_the_page_is_there_once(page):
    found = re.findall(r'\bid="([^"]+)"', page)
    assert len(found) == len(set(found))


def test_predicted_and_measured_stand_in_one_table_with_their_ratio(full, page):
    rows = {row["quantity"]: row for row in full["comparison"]}
    step = rows["step, rows 32, context 128"]
    measured = next(p for p in full["summary"]["phases"] if p["phase"] == "denoise")["median"]
    assert (step["predicted"], step["measured"]) == (2.0, pytest.approx(measured, rel=1e-3))
    assert step["ratio"] == pytest.approx(measured / 2.0, rel=1e-3)
    assert rows["step, rows 32, context 128, not captured"]["predicted"] == 3.0
    assert rows["memory: all, resident"]["predicted"] == 90.0
    assert rows["tokens per joule"]["predicted"] == pytest.approx(80.0)
    assert rows["power while running"]["predicted"] == 7.0
    assert "measured / predicted" in page
    assert "one buffer is big" in page


def test_on_a_crowded_machine_the_comparison_says_itself_that_it_means_nothing(full, tmp_path):
    pytest.importorskip("matplotlib")
    crowded = full | {"crowding": ["other programs were running"]}
    text = list(lines(crowded))
    (place,) = (number for number, line in enumerate(text) if "against the forecast" in line)
    assert text[place - 1].startswith("CROWDED: the ratios of time below mean nothing")
    write_page(crowded, tmp_path / "report.html")
    drawn = (tmp_path / "report.html").read_text("utf-8")
    assert "<th>measured / predicted (crowded: means nothing)</th>" in drawn
    assert "these ratios of time mean nothing" in drawn


def test_layers_beyond_the_first_are_grouped_by_kind(full):
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    kinds = ["MatMul"] * 14 + ["Add", "Mul", "Sub", "Div", "Cast", "Pow", "Exp"]
    times = [{"name": f"layer {n}", "kind": kind, "share": 0.04} for n, kind in enumerate(kinds)]
    figure, _ = drawings.layers(figure_class, {"layers": times})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[12] == "2 more: MatMul"
    assert labels[-1] == "3 more of 3 kinds"
    shares = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(shares) == pytest.approx(100 * 0.04 * len(kinds))


def test_equal_texts_of_a_sweep_are_told_to_be_equal(full, tmp_path):
    pytest.importorskip("matplotlib")
    found = copy.deepcopy(full)
    found["sweep"]["cells"][1]["same_as"] = "--threshold 0.5"
    write_page(found, tmp_path / "report.html")
    assert "(texts of --threshold 0.5)" in (tmp_path / "report.html").read_text("utf-8")


def test_the_table_fits_one_screen_and_says_everything(full):
    text = list(lines(full))
    assert len(text) < 60
    assert max(map(len, text)) < 180
    joined = "\n".join(text)
    for words in ("tokens/s", "engine", "memory, MiB", "VDD_IN", "tokens per joule", "predicted",
                  "--rule threshold --threshold 0.5 --block 32 --threads 1"):  # fmt: skip
        assert words in joined


def test_what_went_wrong_stands_on_top(record, tmp_path):
    pytest.importorskip("matplotlib")
    troubled = copy.deepcopy(record)
    troubled["complete"] = False
    troubled["throttling"] = ["gpu-throttle-alert was raised"]
    troubled["sensors"]["lost"] = {"VDD_IN": "gone after 1.0 s"}
    write_page(troubled, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    for words in ("INTERRUPTED", "gpu-throttle-alert was raised", "gone after 1.0 s"):
        assert text.index(words) < text.index("<svg")
    assert "INTERRUPTED" in "\n".join(lines(troubled))
    assert "THROTTLED" in "\n".join(lines(troubled))


def test_a_run_that_measured_nothing_still_has_a_page_and_a_table(record, tmp_path):
    pytest.importorskip("matplotlib")
    bare = {key: record[key] for key in ("kind", "schema", "created", "machine")}
    bare |= {"complete": False}
    write_page(bare, tmp_path / "page.html")
    assert "No text was generated" in (tmp_path / "page.html").read_text("utf-8")
    assert next(lines(bare)).startswith("nothing was loaded")


def test_without_matplotlib_the_remedy_is_named(monkeypatch, record, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DlmError, match=r"dlm-edge\[report\].*--render run.json"):
        report.write_page(record, tmp_path / "page.html")


def test_two_runs_stand_side_by_side(record, tmp_path):
    pytest.importorskip("matplotlib")
    faster = copy.deepcopy(record)
    figure = faster["summary"]["figures"]["tokens_per_s"]
    for key in ("median", "low", "high"):
        figure[key] *= 2
    rows = {row[0]: row for row in compare(record, faster)}
    assert rows["tokens/s"][3] == pytest.approx(2)
    assert rows["bundle"][1:] == ["stories-4m.dlm", "stories-4m.dlm", None]
    assert rows["power, W"][3] == pytest.approx(1)
    write_comparison(("a", "b"), (record, faster), tmp_path / "compare.html")
    assert (tmp_path / "compare.html").read_text("utf-8").count("<svg") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "is not JSON"),
        ("[]", "not a run of dlm-profile"),
        ('{"kind": "dlm-profile", "schema": 99}', "schema 99"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path, text, said):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_run(path)
    with pytest.raises(DataError, match="cannot read"):
        read_run(tmp_path / "none.json")


def test_a_run_survives_being_written_and_read(record, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    assert read_run(path) == record
