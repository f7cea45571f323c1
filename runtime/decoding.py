"""Decoding rules and their settings: which positions a step commits, and how tokens are drawn.

Only what a rule is and which options it takes stands here; `ops` carries it out. A step gives every
masked position a candidate token and a score, then commits some of them:

| rule | score | commits per step |
|---|---|---|
| `low_confidence` | c = p(candidate) | floor(M / steps) highest, 1 more in the first M % steps |
| `entropy` | -H | the same |
| `margin` | p(first) - p(second) | the same |
| `random` | a uniform draw | the same |
| `threshold` | c | every c >= threshold, and the highest always |
| `factor` | c | the longest prefix, c falling, with c_(n) >= 1 - factor / (n + 1); n = 1 always |
| `entropy_bound` | -H | item k, H ascending, while the sum of H before it <= entropy_bound |
| `first_hitting` | - | one masked position, uniformly; t <- t u^(1/k) with k masked |
| `ancestral` | - | each masked position with chance (m_t - m_s) / m_t; all at the last step |
| `next_token` | - | the one masked position (one token per run, causally) |
| `draft_verify` | - | the drafts that the model's causal rows confirm, and one token more |
| `tweedie` | - | a transition: every free position may move, by the analytic posterior |
| `euler` | - | a transition by the rates of the reverse process, for small steps |

M is the number of masked positions at the block's start. p, c and H belong to the model's own
distribution: banned and disallowed tokens removed, bias and repetition penalty applied, at
temperature 1 and before top-k and top-p, so that they mean the same at every temperature. Equal
scores go to the lowest position. All rules but the transitions and `ancestral` commit at least
one position per step; these three end at their last scheduled step; so every decode ends.

The transitions belong to models that give ratios of probabilities (`transition` has the formulas).
There temperature, top-k and top-p act on where a position moves, not on whether it does, so that
they mean the same at any number of steps.

`draft_verify` (TiDAR) keeps drafts that follow from beta times the causal logits and 1 - beta times
the diffusion logits: at beta 1 its texts are those of `next_token`, token for token at temperature
0, in distribution above it. What a graph gives for a row depends on what the row sees only; but the
last bits of a sum depend on the shape of a run, and where int8 rounds them, near ties may fall
otherwise.

Sources: LLaDA (low_confidence), Fast-dLLM (threshold, factor), Dream (entropy, margin, random),
DiffusionGemma (entropy_bound), BD3-LM (first_hitting), MDLM (ancestral), SEDD (tweedie, euler),
TiDAR (draft_verify).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import ConfigError
from .ops.rows.contract import Sampling
from .ops.unmask.contract import Kind, Score, Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the loop and the ops must know about a rule."""

    score: str
    """Statistic that orders candidates: confidence, entropy, margin, or none."""
    options: tuple[str, ...] = ()
    """Settings that only some rules take and this one does."""
    chooses_first: bool = False
    """True when positions are chosen before tokens are drawn, so that only those rows are read."""
    scheduled: bool = False
    """True when time decides, so that a step may commit nothing."""
    transition: bool = False
    """True when the graph gives log-ratios, and a step moves positions by `Canvas.transition`."""
    drafts: bool = False
    """True when a run verifies what the one before drafted, so that no canvas is committed to."""
    blocks: bool = True
    """False when a step has one position, so that a block size means nothing."""
    penalises: bool = True
    """Whether the repetition penalty is applied."""
    temperature: float = 0.0
    """Default; 1 for the rules that sample the model's distribution exactly."""

    @property
    def unmasks(self) -> bool:
        """True when a step commits masked positions of a canvas."""
        return not (self.transition or self.drafts)


RULES: Mapping[str, Rule] = {
    "low_confidence": Rule(score="confidence", options=("steps",)),
    "threshold": Rule(score="confidence", options=("threshold",)),
    "factor": Rule(score="confidence", options=("factor",)),
    "entropy": Rule(score="entropy", options=("steps",)),
    "margin": Rule(score="margin", options=("steps",)),
    "random": Rule(score="none", options=("steps",), chooses_first=True),
    "entropy_bound": Rule(score="entropy", options=("entropy_bound",)),
    "first_hitting": Rule(score="none", chooses_first=True, temperature=1.0),
    "ancestral": Rule(
        score="none", options=("steps",), chooses_first=True, scheduled=True, temperature=1.0
    ),
    "next_token": Rule(score="none", blocks=False),
    "draft_verify": Rule(score="none", options=("beta",), drafts=True, penalises=False),
    "tweedie": Rule(
        score="none",
        options=("steps",),
        scheduled=True,
        transition=True,
        penalises=False,
        temperature=1.0,
    ),
    "euler": Rule(
        score="none",
        options=("steps",),
        scheduled=True,
        transition=True,
        penalises=False,
        temperature=1.0,
    ),
}

RULE_OPTIONS: Mapping[str, float] = {
    "threshold": 0.9,
    "factor": 1.0,
    "entropy_bound": 0.1,
    "beta": 1.0,
}
"""Defaults of the options that belong to single rules; `steps` has none (see DecodingSettings)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """How one text is decoded.

    Options of another rule than the chosen one are refused rather than ignored, and so are top-k
    and top-p at temperature 0, where they could change nothing.
    """

    rule: str = "threshold"
    """A key of RULES."""
    threshold: float | None = None
    """Rule `threshold`: commit confidences from here on, in (0, 1]; None: 0.9."""
    factor: float | None = None
    """Rule `factor`: above 0, larger commits more; None: 1."""
    entropy_bound: float | None = None
    """Rule `entropy_bound`: nats, at least 0; None: 0.1."""
    beta: float | None = None
    """Rule `draft_verify`: share of the causal logits against the diffusion logits in what
    confirms a draft, in [0, 1]; None: 1."""
    steps: int | None = None
    """Steps per block; None: as many as masked positions (`ancestral` and the transitions: as the
    block has)."""
    temperature: float | None = None
    """0 (the most likely token) or in [0.01, 100]; None: 1 for `first_hitting`, `ancestral` and
    the transitions, else 0."""
    top_k: int | None = None
    """Draw among the k most likely tokens; None: all."""
    top_p: float | None = None
    """Draw among the most likely tokens that reach this share, in (0, 1]; None: all."""
    repetition_penalty: float = 1.0
    """At least 1: logits of tokens already in the text are divided (negative: multiplied) by it."""
    block_size: int | None = None
    """Positions denoised together, one of the bundle's graphs; None: the bundle's default."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"rule {self.rule!r} is unknown; choose one of {', '.join(RULES)}")
        rule = RULES[self.rule]
        for name in (*RULE_OPTIONS, "steps"):
            if getattr(self, name) is not None and name not in rule.options:
                raise ConfigError(f"{name} has no effect on rule {self.rule}; leave it out")
        if not rule.penalises and self.repetition_penalty != 1.0:
            raise ConfigError(f"repetition_penalty has no effect on rule {self.rule}; leave it out")
        for name, default in RULE_OPTIONS.items():
            if name in rule.options and getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.temperature is None:
            object.__setattr__(self, "temperature", rule.temperature)
        self._check_ranges()
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ConfigError(
                "top_k and top_p have no effect at temperature 0; give a temperature above 0"
            )

    def _check_ranges(self) -> None:
        _number("threshold", self.threshold, above=0.0, at_most=1.0)
        _number("factor", self.factor, above=0.0)
        _number("entropy_bound", self.entropy_bound, at_least=0.0)
        _number("beta", self.beta, at_least=0.0, at_most=1.0)
        if self.temperature != 0:
            _number("temperature (if not 0)", self.temperature, at_least=0.01, at_most=100.0)
        _number("top_p", self.top_p, above=0.0, at_most=1.0)
        _number("repetition_penalty", self.repetition_penalty, at_least=1.0, at_most=100.0)
        for name in ("steps", "top_k", "block_size"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")

    @property
    def greedy(self) -> bool:
        """True at temperature 0."""
        return self.temperature == 0

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(
            temperature=self.temperature or 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )

    @property
    def selection(self) -> Selection | None:
        """Which masked positions a step commits; None for rules that commit none."""
        rule = RULES[self.rule]
        if not rule.unmasks:
            return None
        kind = Kind.__members__.get(self.rule.upper(), Kind.QUOTA)
        limit = self.threshold or self.factor or self.entropy_bound or 0.0
        steps = self.steps if kind in (Kind.QUOTA, Kind.RANDOM) else None
        return Selection(kind=kind, score=Score[rule.score.upper()], steps=steps, limit=limit)

    def to_json(self) -> dict[str, Any]:
        """Gives the plain mapping that manifests and results hold, without unset options."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DecodingSettings:
        """Reads what `to_json` gave; raises ConfigError for unknown keys and bad values."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"decoding setting {unknown[0]!r} is unknown; choose from {', '.join(known)}"
            )
        return cls(**values)

    @classmethod
    def merge(cls, defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> DecodingSettings:
        """Lays what a user asked for over a bundle's defaults.

        Defaults that contradict an override yield to it: another rule drops the default rule's own
        options, temperature 0 drops the default top-k and top-p. An override of
        None counts as not given. A default temperature is kept unless the two rules' own differ.
        """
        asked = {name: value for name, value in overrides.items() if value is not None}
        base = dict(defaults)
        old = str(base.get("rule", cls().rule))
        new = str(asked.get("rule", old))
        if new != old and old in RULES and new in RULES:
            for name in (*RULE_OPTIONS, "steps"):
                base.pop(name, None)
            if not RULES[new].blocks:
                base.pop("block_size", None)
            if RULES[new].temperature != RULES[old].temperature:
                base.pop("temperature", None)
        fallback = RULES[new].temperature if new in RULES else 0.0
        if asked.get("temperature", base.get("temperature", fallback)) == 0:
            for name in ("top_k", "top_p"):
                base.pop(name, None)
        return cls.from_json({**base, **asked})


def with_steps(settings: dict[str, Any], num_steps: int | None) -> dict[str, Any]:
    """Gives settings with `num_steps` under its setting's name."""
    if num_steps is None:
        return settings
    if settings.get("steps") is not None:
        raise ConfigError("num_steps and steps are one setting: give one of the two")
    return {**settings, "steps": num_steps}


def _number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not number
        or not (above is None or value > above)
        or not (at_least is None or value >= at_least)
        or not (at_most is None or value <= at_most)
        or value == float("inf")
    ):
        low = f"above {above:g}" if above is not None else f"at least {at_least:g}"
        high = f" and at most {at_most:g}" if at_most is not None else " and finite"
        raise ConfigError(f"{name} must be {low}{high}, not {value!r}")
