import json

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks.int8_quality import compact, main

FIGURES = {
    "title": "int8, as shipped",
    "num_bytes": 26,
    "perplexity": {"perplexity": 15.123456789, "low": 15.0, "high": 15.2},
    "ratio": {"value": 1.001, "low": 1.0, "high": 1.002},
    "by_block": {
        "32": {"ratio": {"value": 1.001, "low": 1.0, "high": 1.002}},
        "16": {"ratio": {"value": 1.002, "low": 1.0, "high": 1.004}},
    },
    "agreement": {"about_to_be_committed": {"rows": 700, "top1": 0.99}},
    "trajectory": {"same_tokens": 0.5},
    "samples": {"judge_bits_per_char": {"value": 2.1}, "entropy": {"value": 3.6}},
}
REPORT = {
    "findings": ["int8 changes perplexity by +0.1 %."],
    "warnings": [],
    "variants": {"fp32": {**FIGURES, "title": "fp32", "num_bytes": 100}, "int8": FIGURES},
    "comparison": {},
    "recipe": {"graphs": {"denoise": {"layers": {"embed": {"precision": "int8", "alpha": None}}}}},
    "ranges": {},
    "canvases": {"coverage": [{"count": 3}, {"count": 4}]},
}


def test_a_report_is_kept_without_its_bulk(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    out = tmp_path / "kept.json"
    arguments = [str(tmp_path / "report.json"), "--made-by", "dlm-export x", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "int8, as shipped" in result.output
    assert "0.26" in result.output
    kept = json.loads(out.read_text("utf-8"))
    assert kept["made_by"] == "dlm-export x"
    assert kept["report"]["num_canvases"] == 7
    assert kept["report"]["layers"] == {"denoise": {"embed": "int8"}}
    assert not {"recipe", "ranges", "canvases"} & kept["report"].keys()
    assert kept["report"]["variants"]["int8"]["perplexity"]["perplexity"] == 15.1235


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON"])
def test_what_is_no_report_is_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    arguments = [str(tmp_path / "x.json"), "--made-by", "x", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "is no report of dlm-export" in result.stderr
    assert result.stderr.count("\n") == 1


def test_figures_keep_six_digits():
    assert compact({"a": [0.123456789, 3, None, "x"]}) == {"a": [0.123457, 3, None, "x"]}
