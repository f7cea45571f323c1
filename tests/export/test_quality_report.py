"""What the report says of the comparison with clean text."""

from types import SimpleNamespace

import pytest
from dlm_edge.calibration.loss import Ratio
from dlm_edge.export.quality_report import _compared


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
