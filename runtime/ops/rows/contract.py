"""How a token is drawn from a row of logits."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from ...options import check_options, option


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What is done to a row of logits before a token is drawn from it."""

    temperature: float = option(
        0.0,
        at_least=0.01,
        at_most=100.0,
        also=(0.0,),
        help="0 takes the most likely token (the lowest id among equals), larger values vary more.",
    )
    top_k: int | None = option(
        None, at_least=1, help="Draw among the k most likely tokens; not set: all."
    )
    top_p: float | None = option(
        None,
        above=0.0,
        at_most=1.0,
        help="Draw among the most likely tokens that reach this share; not set: all.",
    )
    repetition_penalty: float = option(
        1.0,
        at_least=1.0,
        at_most=100.0,
        help="Make tokens of the text so far less likely: their logits are divided (negative: "
        "multiplied) by it.",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for values out of range, and for top-k or top-p at temperature 0."""
        check_options(self)
        if self.greedy and self.truncates:
            raise ConfigError(
                "top_k and top_p have no effect at temperature 0; give a temperature above 0"
            )

    @property
    def greedy(self) -> bool:
        """True at temperature 0."""
        return self.temperature == 0.0

    @property
    def truncates(self) -> bool:
        """True when top-k or top-p leaves tokens out."""
        return self.top_k is not None or self.top_p is not None
