"""Gaussian noise on latents: how much of the signal each training time keeps, and sampler steps.

At time t of T a latent is z_t = alpha_t x0 + sigma_t e with alpha^2 = the schedule's signal share
and alpha^2 + sigma^2 = 1. Networks see the noise as an angle, level = 2 / pi arccos(alpha), from 0
(clean) to 1 (noise alone): so they know neither the schedule nor T, and a sampler may take any
times.

Every sampler here is one linear step, z' = keep z + pull x0 + pull_before x0_before + noise e, with
x0 the model's estimate and x0_before the one of the step before:

| rule | step from (alpha, sigma) to (alpha', sigma') |
|---|---|
| `ddim` | eps = (z - alpha x0) / sigma; z' = alpha' x0 + sqrt(sigma'^2 - n^2) eps + n e |
| `dpm_solver` | z' = sigma' / sigma z - alpha' (exp(-h) - 1) (x0 + (x0 - x0_before) / (2 r)) |

Here n = eta sigma' / sigma sqrt(1 - alpha^2 / alpha'^2), h = lambda' - lambda with lambda =
log(alpha / sigma), and r = h_before / h.

All end at the clean latent, which is the last estimate. Knows no model and no text.

Sources: cosine schedule: arXiv 2102.09672; zero terminal signal: arXiv 2305.08891; DDIM: arXiv
2010.02502, equation 12; DPM-Solver++(2M): arXiv 2211.01095, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ..errors import ConfigError

LEAST, MOST = 1e-4, 0.9999
"""The signal share is kept within, but for a terminal share of zero."""
COSINE_OFFSET = 0.008
BETAS = (1e-4, 0.02)
"""First and last noise of a step of the linear schedule, at 1,000 steps."""
COLUMNS = ("level", "keep", "pull", "pull_before", "noise")
"""Of a table of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSchedule:
    """What training puts on latents."""

    name: str = "cosine"
    num_steps: int = 1000
    """T: times 1 to T of training; a sampler takes T of them at most."""
    zero_snr: bool = False
    """Whether time T keeps no signal at all."""

    def __post_init__(self) -> None:
        if self.name not in ("cosine", "linear"):
            raise ConfigError(
                f"--noise-schedule {self.name}: latents have cosine and linear; choose one"
            )
        count = self.num_steps
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 100_000:
            raise ConfigError(f"--noise-steps must be from 1 to 100000, not {count!r}")

    def signal(self) -> np.ndarray:
        """Gives the signal share alpha^2 of times 0 to T: (T + 1,) float64, falling."""
        time = np.arange(self.num_steps + 1) / self.num_steps
        if self.name == "cosine":
            angle = (time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (np.pi / 2)
            share = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
        else:
            betas = np.linspace(*BETAS, self.num_steps) * (1000 / self.num_steps)
            share = np.append(1.0, np.cumprod(1.0 - np.minimum(betas, 0.999)))
        if not self.zero_snr:
            return np.clip(share, LEAST, MOST)
        share = np.minimum(share, MOST)
        root = np.sqrt(share)
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return root**2

    def levels(self) -> np.ndarray:
        """Gives the noise angle of times 0 to T: (T + 1,) float64 in [0, 1], rising."""
        return np.arccos(np.sqrt(self.signal())) * (2 / np.pi)

    def to_json(self) -> dict[str, Any]:
        """Gives the mapping that config.json and the manifest hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LatentSchedule:
        """Reads what `to_json` gave; raises ConfigError if it is malformed."""
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ConfigError(f"a schedule of latents has no {unknown[0]!r}; export it again")
        return cls(**values)


def sampler_times(num_times: int, steps: int) -> np.ndarray:
    """Gives the training times that a sampler's steps begin at, from T down: (steps,) integers.

    Raises:
        ConfigError: More steps than training times, two of which would be one.
    """
    if not 1 <= steps <= num_times:
        raise ConfigError(
            f"steps must be from 1 to {num_times}, the noise steps that the model was trained on; "
            f"not {steps}"
        )
    return np.round(num_times * (1.0 - np.arange(steps) / steps)).astype(np.int64)


def step_table(schedule: LatentSchedule, rule: str, steps: int, eta: float = 0.0) -> np.ndarray:
    """Makes the steps of a sampler, from all noise to none.

    Args:
        schedule: That of training.
        rule: `ddim` or `dpm_solver`.
        steps: At most T.
        eta: `ddim`: share of the posterior's noise that a step adds, in [0, 1].

    Returns:
        (steps, 5) float64; see COLUMNS.

    Raises:
        ConfigError: Too many steps.
    """
    share = np.append(schedule.signal()[sampler_times(schedule.num_steps, steps)], 1.0)
    alpha, sigma = np.sqrt(share), np.sqrt(1.0 - share)
    now, then, left, after = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
    level = np.arccos(now) * (2 / np.pi)
    if rule == "ddim":
        noise = eta * after / left * np.sqrt(1.0 - (now / then) ** 2)
        keep = np.sqrt(np.maximum(after**2 - noise**2, 0.0)) / left
        return np.stack([level, keep, then - keep * now, np.zeros(steps), noise], axis=1)
    assert rule == "dpm_solver", rule
    with np.errstate(divide="ignore"):
        gain = np.diff(np.log(alpha) - np.log(sigma))  # h; infinite from no signal, and to no noise
    keep = after / left
    pull = -then * np.expm1(-gain)
    extra = np.zeros(steps)  # 1 / (2 r); the first step knows no step before, the last is infinite
    inner = slice(1, steps - 1)
    before = gain[: max(steps - 2, 0)]
    # Two times that are kept within the same bound are no step.
    extra[inner] = np.divide(gain[inner], 2.0 * before, where=before > 0, out=extra[inner])
    return np.stack([level, keep, pull * (1 + extra), -pull * extra, np.zeros(steps)], axis=1)
