"""How rows of logits become tokens; guidance of one batch's logits by another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import ConfigError
from ...options import check_options, option

if TYPE_CHECKING:
    import numpy as np

CHUNK = 64
"""Probabilities per partial sum of the distribution function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn from a row of logits."""

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
        """True when top-k or top-p leave some weights out."""
        return self.top_k is not None or self.top_p is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowSpec:
    """How one text's rows of logits are drawn from; specs of primitives derive from it.

    A draw depends on seed, sample index, position, step and its kind alone: neither on the other
    texts of a batch, nor on the block's size.
    """

    block: int
    """Rows."""
    vocab_size: int
    sampling: Sampling
    seed: int
    sample_index: int
    banned: tuple[int, ...] = ()
    """Ids that are never sampled, ascending."""
    bias: np.ndarray | None = None
    """(vocab,) float32 added to every row's logits, or None."""
    allowed: np.ndarray | None = None
    """(block, ceil(vocab / 32)) uint32 or None: bit j of word w allows token 32 w + j."""


class RowOps(Protocol):
    """The primitive `rows`."""

    def guide(self, logits: Any, scale: float) -> Any:
        """Moves logits away from those without a condition: u + scale (c - u), in place.

        Args:
            logits: (2 n, rows, vocab): slot i < n is conditional, slot n + i its twin without.
            scale: 0 gives the twin's logits, 1 the conditional ones, more than 1 goes beyond.

        Returns:
            The first half: (n, rows, vocab).
        """
        ...
