"""What rounding both sides of a product does to it, measured over a sample of recorded rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..layers import channel_steps, round_matrix
from .activations import Activation

LEVELS = 127
"""Steps to each side of 0."""


class Products:
    """The products of one value with every matrix that it enters."""

    def __init__(self, seen: Activation, weights: Sequence[np.ndarray]) -> None:
        """Computes them exactly.

        Args:
            seen: The value.
            weights: Matrices (channels, outputs).
        """
        self._seen, self._weights = seen, weights
        self._rows = seen.rows.astype(np.float32)
        self._exact = [self._rows @ matrix for matrix in weights]
        self._size = sum(map(self._squares, self._exact))

    def error(
        self,
        *,
        dynamic: bool,
        factors: np.ndarray | None = None,
        outliers: Sequence[int] = (),
    ) -> float:
        """Returns the relative squared error with both sides rounded to int8.

        Args:
            dynamic: Whether each row has a scale of its own instead of a fixed one for all.
            factors: (channels,): what activations are divided by, and rows of matrices multiplied.
            outliers: Channels that stay as they are.
        """
        kept = np.ones(self._rows.shape[1], bool)
        kept[list(outliers)] = False
        most, largest = self._rows[:, kept], self._seen.channel_max[kept]
        if factors is not None:
            factors = factors[kept].astype(np.float32)
            most, largest = most / factors, largest / factors
        if dynamic:
            steps = np.abs(most).max(axis=1, keepdims=True, initial=0.0) / LEVELS
            steps[steps == 0.0] = 1.0  # of nothing but zeros any step is right, except 0
        else:
            steps = float(largest.max(initial=0.0)) / LEVELS or 1.0
        rounded = np.clip(np.rint(most / steps), -LEVELS - 1, LEVELS) * steps
        wrong = 0.0
        for matrix, exact in zip(self._weights, self._exact, strict=True):
            inner = matrix[kept] if factors is None else matrix[kept] * factors[:, None]
            scales = channel_steps(inner, 1)
            stored = round_matrix(inner, scales, 1).astype(np.float32) * scales
            thin = self._rows[:, ~kept] @ matrix[~kept]
            wrong += self._squares(rounded @ stored + thin - exact)
        return wrong / self._size if self._size else 0.0

    def change(self, weights: Sequence[np.ndarray]) -> float:
        """Returns the relative squared error with other matrices in their place."""
        pairs = zip(weights, self._exact, strict=True)
        wrong = sum(self._squares(self._rows @ matrix - exact) for matrix, exact in pairs)
        return wrong / self._size if self._size else 0.0

    def _squares(self, rows: np.ndarray) -> float:
        return float(self._seen.row_weights @ np.square(rows).sum(axis=1))
