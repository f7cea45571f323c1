"""What the report says in words: of clean text, and of drafts."""

from types import SimpleNamespace

import pytest
from dlm_edge.calibration.loss import Ratio
from dlm_edge.export.quality_report import _compared, _pace


def lines(low, sets=("decode", "clean"), chosen="decode"):
    gain = Ratio(value=1.01, low=low, high=1.02)
    failed = {} if "clean" in sets else {"clean": "it is constant"}
    return _compared(
        SimpleNamespace(
            comparison={name: SimpleNamespace(ratio=gain) for name in sets},
            against_decoding={name: gain for name in sets if name != "decode"},
            calibrated_on=chosen,
            failures=failed,
        )
    )


@pytest.mark.parametrize(
    ("low", "words"), [(1.005, "does measurably worse than"), (0.999, "does worse at tokens about")]
)
def test_worse_is_called_measurable_where_an_interval_says_so(low, words):
    assert words in lines(low)[-1]


def test_clean_text_without_scales_is_not_called_worse():
    found = " ".join(lines(1.0, sets=("decode",)))
    assert "worse" not in found
    assert "gave no scales: it is constant" in found


@pytest.mark.parametrize(
    ("name", "target", "told"),
    [("int8", "cpu", True), ("int8", "host", True), ("int8", "orin-nano", False),
     ("fp16", "cpu", False)],
)  # fmt: skip
def test_where_scales_are_those_of_a_run_drafts_are_not_said_to_be_lossless(name, target, told):
    pace = {"tokens_per_nfe": 2.5, "tokens_per_nfe_of_fp32": 3.0}
    found = _pace(SimpleNamespace(name=name, trajectory=pace), target)  # type: ignore[arg-type]
    assert "2.50 tokens per graph run" in found[0]
    assert any("scales from all of its rows" in line for line in found) == told
    alone = SimpleNamespace(name=name, trajectory=dict.fromkeys(pace, 1.0))
    assert _pace(alone, target) == []  # type: ignore[arg-type]
