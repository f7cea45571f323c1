"""How far a training run is, and what the loop calls to put it on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...runtime.errors import DlmError


class DivergedError(DlmError):
    """The loss is not a number any more."""


@dataclass(slots=True, kw_only=True)
class RunState:
    """How far a run is; part of the saved state."""

    step: int = 0
    """Optimiser steps done."""
    eval_rows: int = 0
    """Held-out sequences of every evaluation, or best figures would not compare; 0: not chosen."""
    elapsed_s: float = 0.0
    """Seconds trained, over all resumptions."""
    best_nats: float = math.inf
    """Smallest held-out mean over block sizes."""
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    figures: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Held-out figures of the best evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the loop calls to put things on disk; each runs on every rank."""

    on_best: Callable[[RunState, dict[str, torch.Tensor]], None]
    """Gets the weights to use."""
    on_save: Callable[[RunState, dict[str, torch.Tensor], dict[str, Any]], None]
    """Gets the weights to use and the state."""
    interrupted: Callable[[], bool]
    """Whether the user asked to stop."""
