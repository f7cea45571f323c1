import numpy as np
import pytest
from dlm_edge.runtime.errors import DataError
from dlm_edge.runtime.measure.figures import FORMS
from dlm_edge.runtime.measure.overlap import overlap_figures, self_bleu

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
pytest.importorskip("nltk")
TEXTS = [
    "The little dog ran home to his mother.",
    "a cat sat on the mat and it was very happy there",
    "She said hello.",
]
REFERENCES = [
    "The little dog ran to his mother, and was glad.",
    "a cat sat on a mat and was very happy there",
    "He waved.",
]


def test_a_text_that_is_its_reference_has_the_highest_figures():
    found = {name: one.figure for name, one in overlap_figures(TEXTS, TEXTS).items()}
    assert found["exact_match"] == 1
    assert found["bleu"] == pytest.approx(100)
    assert found["chrf"] == pytest.approx(100)
    assert [found[name] for name in ("rouge_1", "rouge_2", "rouge_l")] == [1, 1, 1]
    assert found["meteor"] > 0.98


def test_bleu_is_that_of_the_whole_corpus():
    found = overlap_figures(TEXTS, REFERENCES)["bleu"]
    wanted = sacrebleu.metrics.BLEU(smooth_method="none").corpus_score(TEXTS, [REFERENCES]).score
    assert found.figure == pytest.approx(wanted)
    draws = found.rows[[0, 1, 1]].sum(axis=0)
    wanted = sacrebleu.metrics.BLEU(smooth_method="none").corpus_score(
        [TEXTS[i] for i in (0, 1, 1)], [[REFERENCES[i] for i in (0, 1, 1)]]
    )
    assert FORMS["bleu"](draws) == pytest.approx(wanted.score)


def test_a_corpus_without_a_common_4_gram_has_a_bleu_of_zero():
    assert overlap_figures(["a b c d e"], ["a x c y e"])["bleu"].figure == 0


def test_rouge_is_counted_by_hand():
    found = overlap_figures(["the cat sat"], ["the cat ran away"])
    assert found["rouge_1"].figure == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert found["rouge_2"].figure == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_meteor_knows_stems():
    found = overlap_figures(["dogs running"], ["dog runs"])["meteor"].figure
    # Two words matched in one chunk: F is 1, the penalty 0.5 (1/2)^3.
    assert found == pytest.approx(1 - 0.5 / 8)


def test_alike_texts_have_a_high_self_bleu():
    rng = np.random.default_rng(0)
    different = [" ".join(rng.choice(list("abcdefghij"), 12)) for _ in range(5)]
    assert self_bleu(["the cat sat on the mat"] * 3).figure == pytest.approx(100)
    assert self_bleu(different).figure < 60


def test_references_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="2 texts and 1 references"):
        overlap_figures(["a", "b"], ["a"])
    with pytest.raises(DataError, match="reference 2 is empty"):
        overlap_figures(["a", "b"], ["a", " "])
