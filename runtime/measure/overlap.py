"""How much of a reference a text has: exact match, BLEU, ROUGE, METEOR, chrF.

The field's own libraries measure (extra `eval`); here they are put beside each other per text, so
that models compare in pairs. BLEU and chrF are in percent, as their library gives them; the others
are shares of 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from .figures import Measured

NUM_SELF_BLEU = 50
"""Texts that self-BLEU compares with each other: its cost grows with their square."""
_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def overlap_figures(texts: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """Compares each text with its reference.

    Returns:
        `exact_match` (white space at the ends aside); `bleu`, of the corpus, without smoothing
        (sacrebleu, tokenizer 13a); `chrf`, mean over texts (sacrebleu); `rouge_1`, `rouge_2`,
        `rouge_l`: F1 with stemming (rouge-score); `meteor`, with exact words and stems, and
        synonyms where nltk finds WordNet (nltk; Banerjee and Lavie 2005).

    Raises:
        DataError: Other numbers of texts than of references, or an empty reference.
        ModuleNotFoundError: A library of the extra `eval` lacks.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(texts) != len(references):
        raise DataError(
            f"there are {len(texts)} texts and {len(references)} references; give one for each"
        )
    for number, reference in enumerate(references, 1):
        if not reference.strip():
            raise DataError(f"reference {number} is empty; leave that text out")
    texts = [text.strip() for text in texts]
    references = [reference.strip() for reference in references]
    pairs = list(zip(texts, references, strict=True))
    bleu, chrf = BLEU(effective_order=True), CHRF()
    found = {"exact_match": Measured.mean([float(a == b) for a, b in pairs])}
    scores = [bleu.sentence_score(a, [b]) for a, b in pairs]
    rows = [[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores]
    found["bleu"] = Measured(np.array(rows, np.float64).reshape(-1, 10), "bleu")
    found["chrf"] = Measured.mean([chrf.sentence_score(a, [b]).score for a, b in pairs])
    scorer = RougeScorer(list(_ROUGE.values()), use_stemmer=True)
    rouge = [scorer.score(b, a) for a, b in pairs]
    for name, key in _ROUGE.items():
        found[name] = Measured.mean([score[key].fmeasure for score in rouge])
    found["meteor"] = Measured.mean(_meteor(pairs))
    return found


def require_libraries() -> None:
    """Raises ModuleNotFoundError where a library of the extra `eval` lacks: before hours of work
    whose texts could not be measured."""
    import nltk  # noqa: F401
    import rouge_score.rouge_scorer  # noqa: F401
    import sacrebleu.metrics  # noqa: F401


def has_synonyms() -> bool:
    """Tells whether nltk finds WordNet here, so that METEOR knows synonyms."""
    import nltk

    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:
        try:
            nltk.data.find("corpora/wordnet.zip")
        except LookupError:
            return False
    return True


class _NoSynonyms:
    """WordNet's stand-in for METEOR where it is not installed: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        del word
        return []


def _meteor(pairs: Iterable[tuple[str, str]]) -> list[float | None]:
    from nltk.translate.meteor_score import single_meteor_score

    wordnet: dict[str, Any] = {} if has_synonyms() else {"wordnet": _NoSynonyms()}
    return [single_meteor_score(b.split(), a.split(), **wordnet) for a, b in pairs]


def self_bleu(texts: Sequence[str]) -> Measured:
    """Gives the mean BLEU of the first texts, each against the others: high where texts are alike
    (Zhu et al. 2018, arXiv 1802.01886). Its interval takes the texts compared with as given."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    chosen = [text for text in texts if text.strip()][:NUM_SELF_BLEU]
    if len(chosen) < 2:
        return Measured.mean([None] * len(texts))
    found: list[float | None] = [
        bleu.sentence_score(text, chosen[:number] + chosen[number + 1 :]).score
        for number, text in enumerate(chosen)
    ]
    return Measured.mean(found)
