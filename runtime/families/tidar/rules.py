"""The decoding rule of TiDAR: drafts by diffusion, kept where the causal rows confirm them.

Drafts follow from beta times the causal logits and 1 - beta times the diffusion logits: at beta 1
the texts are those of `next_token`, token for token at temperature 0, in distribution above it.
What a graph gives for a row depends on what the row sees only; but the last bits of a sum depend on
the shape of a run, and where int8 rounds them, near ties may fall otherwise.

Source: TiDAR (arXiv 2511.08923).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...decoding import BlockRule
from ...options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftVerify(BlockRule):
    """Commits the drafts that the model's causal rows confirm, and one token more."""

    name: ClassVar[str] = "draft_verify"
    ignores: ClassVar[tuple[str, ...]] = ("repetition_penalty",)
    beta: float = option(
        1.0,
        at_least=0.0,
        at_most=1.0,
        sweep=(0.5,),
        help="Share of causal against diffusion logits in what confirms a draft; 1 is lossless.",
    )
