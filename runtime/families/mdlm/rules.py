"""The decoding rules of masked diffusion: which masked positions a step commits.

A step gives every masked position a candidate token and a score, then commits some of them:

| rule | score | commits per step |
|---|---|---|
| `threshold` | c = p(candidate) | every c >= threshold, and the highest always |
| `low_confidence` | c | floor(M / steps) highest, 1 more in the first M % steps |
| `entropy` | -H | the same |
| `margin` | p(first) - p(second) | the same |
| `random` | a uniform draw | the same |
| `factor` | c | the longest prefix, c falling, with c_(n) >= 1 - factor / (n + 1); n = 1 always |
| `entropy_bound` | -H | item k, H ascending, while the sum of H before it <= entropy_bound |
| `first_hitting` | - | one masked position, uniformly; t <- t u^(1/k) with k masked |
| `ancestral` | - | each masked position with chance (m_t - m_s) / m_t; all at the last step |

M is the number of masked positions at the block's start. p, c and H belong to the model's own
distribution: banned and disallowed tokens removed, bias and repetition penalty applied, at
temperature 1 and before top-k and top-p, so that they mean the same at every temperature. Equal
scores go to the lowest position. All rules but `ancestral` commit at least one position per step;
`ancestral` ends at its last step; so every decode ends.

Sources: LLaDA (low_confidence), Fast-dLLM (threshold, factor), Dream (entropy, margin, random),
DiffusionGemma (entropy_bound), BD3-LM (first_hitting), MDLM (ancestral).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...decoding import EXACT, BlockRule
from ...ops.rows.contract import Sampling
from ...ops.unmask.contract import Kind, Score, Selection
from ...options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedDecoding(BlockRule):
    """A rule that commits masked positions."""

    sub_block: int | None = option(
        None,
        at_least=1,
        help="Fill a block by parts of so many positions, from left to right; not set: anywhere.",
    )
    merge: int | None = option(
        None,
        at_least=0,
        at_most=1,
        help="Of a model whose rows speak for the next position (public models say so): 1 lets the "
        "run that stores a block begin the next. It saves a run per block and writes another text "
        "than 0 or not set, by which such models were published.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(MaskedDecoding):
    """Commits every token whose confidence reaches the threshold, and the most confident always."""

    name: ClassVar[str] = "threshold"
    threshold: float = option(
        0.9,
        above=0.0,
        at_most=1.0,
        sweep=(0.95, 0.9, 0.8, 0.7, 0.5),
        help="Commit every confidence from this on.",
    )

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.THRESHOLD, score=Score.CONFIDENCE, limit=self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedDecoding(MaskedDecoding):
    """A rule that spreads a block over a number of steps."""

    steps: int | None = option(
        None, at_least=1, help="Steps per block; not set: one per position to fill."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaDecoding(SteppedDecoding):
    """A rule that commits equally many positions in each step, those of the highest score."""

    score: ClassVar[Score]

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.QUOTA, score=self.score, steps=self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowConfidence(QuotaDecoding):
    """Commits the most confident tokens, equally many in each step."""

    name: ClassVar[str] = "low_confidence"
    swept: ClassVar[bool] = True
    score: ClassVar[Score] = Score.CONFIDENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Entropy(QuotaDecoding):
    """Commits the positions of lowest entropy, equally many in each step."""

    name: ClassVar[str] = "entropy"
    score: ClassVar[Score] = Score.ENTROPY


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin(QuotaDecoding):
    """Commits where the first token leads the second most, equally many in each step."""

    name: ClassVar[str] = "margin"
    score: ClassVar[Score] = Score.MARGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(SteppedDecoding):
    """Commits random positions, equally many in each step."""

    name: ClassVar[str] = "random"

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.RANDOM, steps=self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor(MaskedDecoding):
    """Commits the n most confident tokens while their confidence c >= 1 - factor / (n + 1)."""

    name: ClassVar[str] = "factor"
    factor: float = option(
        1.0, above=0.0, sweep=(0.5, 1.0, 2.0), help="Larger commits more at once."
    )

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.FACTOR, score=Score.CONFIDENCE, limit=self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyBound(MaskedDecoding):
    """Commits positions of low entropy until their entropies sum to the bound."""

    name: ClassVar[str] = "entropy_bound"
    entropy_bound: float = option(
        0.1, at_least=0.0, sweep=(0.1, 0.5), help="Commit up to so many nats per step."
    )

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.ENTROPY_BOUND, score=Score.ENTROPY, limit=self.entropy_bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstHitting(MaskedDecoding):
    """Commits one random position per step: samples the model's distribution exactly."""

    name: ClassVar[str] = "first_hitting"
    sampling: Sampling = EXACT

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.FIRST_HITTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestral(SteppedDecoding):
    """Commits each position by chance, as the noise schedule says for the step."""

    name: ClassVar[str] = "ancestral"
    sampling: Sampling = EXACT

    @property
    def selection(self) -> Selection:
        return Selection(kind=Kind.ANCESTRAL)


RULES: tuple[type[MaskedDecoding], ...] = (
    Threshold,
    LowConfidence,
    Factor,
    Entropy,
    Margin,
    Random,
    EntropyBound,
    FirstHitting,
    Ancestral,
)
