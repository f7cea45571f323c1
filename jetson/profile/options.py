"""What a profile measures: settings, and the prompts that it takes unless it is given others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..sensors.sampler import DEFAULT_RATE

DEFAULT_PROMPTS = (
    "",
    "Once upon a time",
    "The little dog was very happy because",
    "One day, a girl named Sue went to the park with her mom. She saw a big red ball under a tree "
    "and she wanted to play with it. But the ball was not hers, so she asked her mom what to do.",
)
"""Unconditional, short, middling, and one of some fifty tokens, so that prefill has work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What to measure."""

    bundle: Path | None = None
    """None: the model that ships with the package."""
    engine: str = "auto"
    threads: int | None = None
    expect_sha256: str | None = None
    prompts: tuple[str, ...] | None = None
    """None: those of DEFAULT_PROMPTS that the bundle has room for."""
    runs: int = 3
    """Texts per prompt."""
    warm_up: int = 1
    """Texts that are not counted, before the others."""
    max_tokens: int | None = None
    """New tokens at most per text; None: the runtime's own limit."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the bundle's decoding settings."""
    seed: int = 0
    sensors: str = "auto"
    rate: float = DEFAULT_RATE
    """Readings per second."""
    layers: bool = True
    """Time single layers, in a run of its own."""
