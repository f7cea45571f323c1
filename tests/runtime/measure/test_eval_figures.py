import math

import pytest
from dlm_edge.runtime.measure.evaluate import EvalResult, eval_figures, eval_line

RESULT = EvalResult(
    perplexity=4.0,
    perplexity_low=3.5,
    perplexity_high=4.5,
    nats_per_token=math.log(4),
    num_tokens=3,
    num_samples=8,
    total_nats=3 * math.log(4),
    windows=((3 * math.log(4), 3),),
)


class Letters:
    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids if i)


def test_bits_are_counted_by_the_characters_that_were_scored():
    found = eval_figures(RESULT, Letters(), [0, 1, 2, 0, 3, 4], 0)
    assert found["num_chars"] == 2  # the separator has none; what is behind was not scored
    assert found["num_documents"] == 2
    assert found["bits_per_char"] == found["bits_per_byte"] == pytest.approx(3 * 2 / 2)


def test_a_text_without_a_character_has_figures_too():
    found = eval_figures(RESULT, Letters(), [0, 0, 0, 0], 0)
    assert found["num_chars"] == 0
    assert math.isfinite(found["bits_per_char"])


def test_the_line_names_interval_units_and_engine():
    found = eval_figures(RESULT, Letters(), [0, 1, 2, 3], 0)
    line = eval_line({**found, "block": 8, "engine": "torch", "precision": "fp32", "seconds": 0.04})
    assert line == (
        "perplexity 4 (3.5 to 4.5 with 95 %), 1.3863 nats/token, 2.0000 bits/char; 3 tokens of "
        "1 documents, 8 samples, block 8, torch fp32, 0.0 s"
    )


def test_figures_of_an_exact_likelihood_claim_no_interval_and_no_draws():
    figures = {
        "perplexity": 6.0, "perplexity_low": 6.0, "perplexity_high": 6.0, "num_samples": 1,
        "nats_per_token": 1.79, "bits_per_char": 0.8, "num_tokens": 9, "num_documents": 2,
        "block": 1, "engine": "onnxruntime-cpu", "precision": "fp32", "seconds": 0.5,
    }  # fmt: skip
    line = eval_line(figures)
    assert line.startswith("perplexity 6 (exact), 1.7900 nats/token")
    assert "samples" not in line
    drawn = eval_line({**figures, "perplexity_low": 5.9, "num_samples": 4, "block": 16})
    assert "(5.9 to 6 with 95 %)" in drawn
    assert "4 samples, block 16, onnxruntime-cpu" in drawn
