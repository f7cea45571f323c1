"""Latents move step by step to a model's estimate; known ones are put back after every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import EngineError
from ..core import Referable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentSpec:
    """What a canvas of latents is made with."""

    rows: int
    width: int
    """Numbers of a latent."""
    table: np.ndarray
    """(steps, 5) float64, of `noise.latent.step_table`: level, keep, pull, pull before, noise."""
    guidance: float
    """Weight of the condition, for graphs that are fed it."""
    seed: int
    sample_index: int


@dataclass(slots=True, kw_only=True, eq=False)
class LatentCanvas(Referable):
    """One text's latents, and what its runs are fed. Arrays are the ops' own."""

    spec: LatentSpec
    latents: Any
    """(1, rows, width) float32."""
    before: Any
    """(1, rows, width) float32: the last estimate; zeros at the begin."""
    known: Any
    """(1, rows) float32: 1 where the latent is given, 0 elsewhere."""
    level: Any
    """(1,) float32: the noise of the next run."""
    guidance: Any
    """(1,) float32."""
    step: int = 0
    """Steps done, as the host counts them."""
    memory: Any = None
    """The ops' own."""

    @property
    def finished(self) -> bool:
        """True when every step was taken."""
        return self.step >= len(self.spec.table)


class LatentOps(Protocol):
    """The primitive `latent`.

    A canvas begins as noise alone: the Gaussians of step 0 at the rows' absolute positions (see
    `noise.philox`). A step makes each latent keep z + pull x + pull_before x_before + noise e, in
    float32, with x the estimate, x_before the one of the step before and e the Gaussians of the
    step's number + 1; rows that are known become what was given. `before` becomes x, `level` the
    next step's. An estimate that is not finite is an EngineError that names the step.
    """

    def canvas(self, spec: LatentSpec) -> LatentCanvas:
        """Allocates everything that steps need; nothing is allocated per step afterwards."""
        ...

    def begin(self, canvas: LatentCanvas, known: np.ndarray, *, position: int) -> None:
        """Starts from noise.

        Args:
            canvas: The text's.
            known: (rows,) bool: which latents `give` will bring.
            position: Absolute position of the first row, which draws are keyed by.
        """
        ...

    def give(self, embedded: Any, canvas: LatentCanvas) -> None:
        """Sets the latents of known rows from (1, rows, width) float32."""
        ...

    def move(self, estimate: Any, canvas: LatentCanvas) -> None:
        """Takes a step towards an estimate (1, rows, width) float32; enqueues on a device."""
        ...

    def flush(self, canvas: LatentCanvas) -> None:
        """Ends what a step enqueued, so that the device goes on with it."""
        ...

    def check(self, canvas: LatentCanvas) -> None:
        """Waits for all steps; raises EngineError for an estimate that was not finite."""
        ...


def not_finite(step: int, canvas: LatentCanvas) -> EngineError:
    """Makes the error for an estimate that is not finite, of the step with this number from 1."""
    return EngineError(
        f"the estimate of step {step} of {len(canvas.spec.table)} is not finite; the graph "
        "overflows: try another precision"
    )
