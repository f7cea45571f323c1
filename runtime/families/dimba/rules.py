"""The decoding rules of latent diffusion: how a step moves a canvas of latents.

| rule | step |
|---|---|
| `ddim` | towards the estimate along the noise it leaves; `eta` adds noise anew |
| `dpm_solver` | DPM-Solver++(2M): second order in the estimates of two steps |

Tokens are rounded from the last estimate. `noise.latent` has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...decoding import BlockRule
from ...options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDecoding(BlockRule):
    """A rule that moves latents to the model's estimate."""

    ignores: ClassVar[tuple[str, ...]] = ("repetition_penalty",)
    steps: int = option(
        50,
        at_least=1,
        sweep=(10, 50, 100),
        help="Steps per canvas; at most the noise steps of training.",
    )
    guidance: float = option(
        1.0,
        at_least=0.0,
        help="Weight of the given text: 1 as trained, more than 1 goes beyond, 0 ignores it.",
    )
    clamp_expected: float = option(
        0.0,
        at_least=0.0,
        at_most=1.0,
        help="Share of the last steps whose estimate becomes the mean embedding it rounds to.",
    )
    clamp_nearest: float = option(
        0.0,
        at_least=0.0,
        at_most=1.0,
        help="Share of the last steps whose estimate becomes the nearest embedding.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddim(LatentDecoding):
    """Moves latents along the noise that the model's estimate leaves."""

    name: ClassVar[str] = "ddim"
    eta: float = option(
        0.0,
        at_least=0.0,
        at_most=1.0,
        help="Noise added by a step: 0 none, 1 as much as the posterior has.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DpmSolver(LatentDecoding):
    """Moves latents by a second-order step from the last two estimates."""

    name: ClassVar[str] = "dpm_solver"
