"""How a token is drawn from a row of logits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What is done to a row of logits before a token is drawn from it."""

    temperature: float = 0.0
    """0: the most likely token, the lowest id among equals."""
    top_k: int | None = None
    """Draw among the k most likely tokens; None: all."""
    top_p: float | None = None
    """Draw among the most likely tokens that reach this share; None: all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the text has already are divided (negative: multiplied) by it."""

    @property
    def greedy(self) -> bool:
        """True at temperature 0."""
        return self.temperature == 0.0

    @property
    def truncates(self) -> bool:
        """True when top-k or top-p leaves tokens out."""
        return self.top_k is not None or self.top_p is not None
