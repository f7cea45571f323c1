"""How close logits are to their reference: the figures of parity, and what they may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...runtime.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far an exported graph may be from PyTorch in float32."""

    relative: float
    """Largest error of a logit, as a share of the largest logit."""
    top1: float
    """Share of rows whose most likely token must be the same, ties within rounding aside."""
    divergence: float
    """Mean Kullback-Leibler divergence per row, nats."""
    tie: float = 2e-5
    """Two tokens closer than this share of the largest logit are tied: either may come first."""


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(relative=1e-4, top1=0.999, divergence=1e-8),
    "fp16": Tolerance(relative=1e-2, top1=0.98, divergence=1e-5),
    # Measured 2e-4 to 7e-4 on untrained models; every activation is rounded, too.
    "fp16 typed": Tolerance(relative=1e-2, top1=0.98, divergence=1e-4),
    # Against gross faults only: what int8 costs is calibration's business, on a real text.
    "int8": Tolerance(relative=0.25, top1=0.85, divergence=0.05, tie=0.05),
    "int8 typed": Tolerance(relative=0.25, top1=0.85, divergence=0.05, tie=0.05),
    "int4": Tolerance(relative=0.5, top1=0.6, divergence=0.5, tie=0.05),
    "int4 typed": Tolerance(relative=0.5, top1=0.6, divergence=0.5, tie=0.05),
}


@dataclass(slots=True)
class LogitErrors:
    """Running comparison of logits with their reference."""

    tie: float = 2e-5
    """As in Tolerance."""
    max_abs_error: float = 0.0
    max_logit: float = 0.0
    rows: int = 0
    same_top1: int = 0
    ties: int = 0
    divergence: float = 0.0
    by_ratio: dict[float, float] = field(default_factory=dict)
    """Largest absolute error per mask ratio."""

    def add(self, found: np.ndarray, wanted: np.ndarray, ratio: float) -> None:
        """Compares logits (…, V) with their reference of the same shape."""
        found = found.reshape(-1, found.shape[-1]).astype(np.float64)
        wanted = wanted.reshape(-1, wanted.shape[-1]).astype(np.float64)
        if not np.isfinite(found).all():
            raise EngineError(
                "the exported graph gives NaN or infinity on real text: the checkpoint's weights "
                "are too large for its precision, or training diverged"
            )
        error = float(np.abs(found - wanted).max())
        self.max_abs_error = max(self.max_abs_error, error)
        self.max_logit = max(self.max_logit, float(np.abs(wanted).max()))
        self.by_ratio[ratio] = max(self.by_ratio.get(ratio, 0.0), error)
        best, other = wanted.argmax(axis=1), found.argmax(axis=1)
        rows = np.arange(len(wanted))
        tie = (best != other) & (
            wanted[rows, best] - wanted[rows, other] <= self.tie * self.max_logit
        )
        self.rows += len(rows)
        self.same_top1 += int((best == other).sum())
        self.ties += int(tie.sum())
        log_p, log_q = _log_softmax(wanted), _log_softmax(found)
        self.divergence += float((np.exp(log_p) * (log_p - log_q)).sum())

    @property
    def relative(self) -> float:
        """Largest error as a share of the largest logit."""
        return self.max_abs_error / max(self.max_logit, 1e-30)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures for the report."""
        return {
            "rows": self.rows,
            "max_abs_error": self.max_abs_error,
            "max_relative_error": self.relative,
            "top1_agreement": self.same_top1 / max(self.rows, 1),
            "top1_ties": self.ties,
            "mean_divergence_nats": self.divergence / max(self.rows, 1),
            "max_abs_error_by_mask_ratio": {f"{r:.1f}": e for r, e in self.by_ratio.items()},
        }

    def require(self, tolerance: Tolerance, what: str) -> None:
        """Raises EngineError naming the first figure beyond its tolerance."""
        agreement = (self.same_top1 + self.ties) / max(self.rows, 1)
        divergence = self.divergence / max(self.rows, 1)
        for name, value, limit, fits in (
            ("largest relative error", self.relative, tolerance.relative, "at most"),
            ("top-1 agreement", agreement, tolerance.top1, "at least"),
            ("mean divergence in nats", divergence, tolerance.divergence, "at most"),
        ):
            if value < limit if fits == "at least" else value > limit:
                raise EngineError(
                    f"{what}: {name} must be {fits} {limit:g}, found {value:.3g}; nothing was "
                    "written: export with --precision fp32, or report a fault if it is"
                )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
