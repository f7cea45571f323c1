"""A matrix as int8 with one symmetric step per channel: the one rounding that all recipes share."""

from __future__ import annotations

import numpy as np

LEAST_STEP = 1e-12
"""Of a channel of zeros."""
LEAST_HALF_STEP = 2.0**-14
"""float16's smallest normal number: below it steps lose digits. As the step of a weight that is an
error of 3e-5 at most."""
FLOAT16_LIMIT = 65504.0


def quantize_matrix(
    array: np.ndarray, axis: int, limit: int, *, half: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a matrix to integers with one symmetric step per channel.

    Args:
        array: (rows, columns) float32.
        axis: Which of the two counts channels.
        limit: Largest integer, 1 to 127.
        half: Whether steps must be exact in float16, beside which TensorRT wants them.

    Returns:
        int8 of the same shape, and the steps (channels,) float32.
    """
    steps = np.abs(array).max(axis=1 - axis) / limit
    if half:
        # Rounded up to float16, a step of the limit itself would be too much `limit` times.
        most = FLOAT16_LIMIT / (limit + 1)
        steps = np.clip(steps, LEAST_HALF_STEP, most).astype(np.float16)
    steps = np.maximum(steps, LEAST_STEP).astype(np.float32)
    rounded = np.rint(array / np.expand_dims(steps, 1 - axis))
    return np.clip(rounded, -limit, limit).astype(np.int8), steps
