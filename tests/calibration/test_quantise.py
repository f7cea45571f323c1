from dlm_edge.calibration.losses.loss import Ratio
from dlm_edge.calibration.losses.quality import VariantFigures
from dlm_edge.calibration.quantise import choose


def figures(top1):
    return VariantFigures(
        name="", title="", num_bytes=1, perplexity={}, ratio=ratio(0.0), by_block={}, trajectory={},
        samples={}, agreement={"about_to_be_committed": {"rows": 9, "top1": top1, "top5": 1.0}},
    )  # fmt: skip


def ratio(loss, margin=0.001):
    return Ratio(value=1 + loss, low=1 + loss - margin, high=1 + loss + margin)


def chosen(loss, clean_top1=0.99):
    comparison = {"decode": figures(0.99), "clean": figures(clean_top1)}
    return choose(comparison, {"clean": ratio(loss)})


def test_clean_text_is_taken_unless_its_perplexity_is_measurably_worse():
    assert chosen(-0.002) == "clean"
    assert chosen(0.0005) == "clean"
    assert chosen(0.002) == "decode"


def test_clean_text_that_changes_more_committed_tokens_is_not_taken():
    assert chosen(0.0, clean_top1=0.986) == "clean"
    assert chosen(0.0, clean_top1=0.98) == "decode"


def test_without_scales_from_clean_text_decoding_is_taken():
    assert choose({"decode": figures(1.0)}, {}) == "decode"
