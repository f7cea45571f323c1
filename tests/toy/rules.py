"""How the toy family decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlm_edge.runtime.decoding import DecodingRule
from dlm_edge.runtime.options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyDecoding(DecodingRule):
    """Moves latents to what guidance takes for clean."""

    name: ClassVar[str] = "guided_ddim"
    ignores: ClassVar[tuple[str, ...]] = ("temperature", "top_k", "top_p", "repetition_penalty")
    steps: int = option(4, at_least=1, help="Steps per text.")
    guidance: float = option(1.5, at_least=0.0, help="Weight of the source; 1: as trained.")
