"""What the report says in words: of clean text, and of drafts."""

from types import SimpleNamespace

import pytest
from dlm_edge.calibration.losses.loss import Ratio
from dlm_edge.calibration.recipe import GraphRecipe, LayerRecipe, Recipe
from dlm_edge.calibration.report.quality_report import _compared, _given_up, _pace, _warnings


def lines(low, sets=("decode", "clean"), chosen="decode"):
    gain = Ratio(value=1.01, low=low, high=1.02)
    failed = {} if "clean" in sets else {"clean": "it is constant"}
    return _compared(
        SimpleNamespace(
            comparison={name: SimpleNamespace(ratio=gain) for name in sets},
            against_decoding={name: gain for name in sets if name != "decode"},
            calibrated_on=chosen,
            failures=failed,
        ),
        "int4",
    )


@pytest.mark.parametrize(
    ("low", "words"), [(1.005, "does measurably worse than"), (0.999, "does worse at tokens about")]
)
def test_worse_is_called_measurable_where_an_interval_says_so(low, words):
    assert words in lines(low)[-1]


def test_the_sets_are_compared_at_the_precision_that_was_asked_for():
    assert lines(1.0)[0].startswith("The same int4, before any budget")


def test_layers_that_the_budget_made_int8_are_counted_apart_from_those_in_floating_point():
    precisions = ("int4", "int8", "int8", "float")
    layers = {
        str(place): LayerRecipe(precision=precision, reason="budget" if place else "")
        for place, precision in enumerate(precisions)
    }
    recipe = Recipe(target="cpu", graphs={"g": GraphRecipe(layers=layers)})
    assert _given_up(recipe, 0.005) == [
        "1 layers are in floating point to keep within 0.5 %.",
        "2 layers are in int8 instead of int4 to keep within 0.5 %.",
    ]


def test_clean_text_without_scales_is_not_called_worse():
    found = " ".join(lines(1.0, sets=("decode",)))
    assert "worse" not in found
    assert "gave no scales: it is constant" in found


def test_the_pace_is_told_where_something_drafts():
    pace = {"tokens_per_nfe": 2.5, "tokens_per_nfe_of_fp32": 3.0}
    (line,) = _pace(SimpleNamespace(name="int8", trajectory=pace))  # type: ignore[arg-type]
    assert "2.50 tokens per graph run" in line
    alone = SimpleNamespace(name="int8", trajectory=dict.fromkeys(pace, 1.0))
    assert _pace(alone) == []  # type: ignore[arg-type]


def warnings(*, top1=0.99, rows=100, half=1.0, high=1.004):
    def variant(value):
        soon = {"rows": rows, "top1": top1}
        return SimpleNamespace(
            agreement={"about_to_be_committed": soon},
            worst=Ratio(value=value, low=value, high=value),
        )

    return _warnings(
        SimpleNamespace(
            outcome=SimpleNamespace(ratio=Ratio(value=1.0, low=1.0, high=high)),
            variants={"fp16": variant(half), "int8": variant(1.0)},
        ),
        SimpleNamespace(max_loss=0.005, precision="int8"),
    )


def test_the_report_warns_of_what_is_beyond_its_figures_and_of_nothing_else():
    assert warnings() == warnings(top1=0.5, rows=0) == []
    (line,) = warnings(top1=0.97)
    assert "97.0 %" in line
    assert "of 100 rows" in line
    (line,) = warnings(half=1.002)
    assert "fp16 alone loses 0.200 %" in line
    (line,) = warnings(high=1.006)
    assert "--force" in line
