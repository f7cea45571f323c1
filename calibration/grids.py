"""Matrices of 4 bits: every group of inputs of an output has sixteen values at equal distances.

On CPUs groups have 32 inputs and a lowest value of their own. TensorRT multiplies signed codes by a
positive step, so that a group of a board has 128 inputs (64 where 128 do not divide them) from -8
to 7 steps.

A matrix that comes from 4 bits (a GGUF file of Q4_0, Q4_1 or Q4_K) is on such a grid already.
`find_grid` gives it back from the values alone, and only if every one of them is met exactly, so
that nothing is rounded twice. Any other matrix is rounded, each value so that the values after it
make up for its error where the canvases say it matters.

Source: Frantar et al., "GPTQ", arXiv 2210.17323: columns in order, the inverse of the inputs'
second moments by Cholesky.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

GROUP = 32
BOARD_GROUPS = (128, 64)
"""Sizes that TensorRT takes, the better ones first."""
LEVELS = 16
NARROWER = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the range that spans a group symmetrically; the one with the least error is taken."""
LEAST_HALF_STEP = 2.0**-14
"""float16's smallest normal number: below it steps lose digits. As the step of a weight that is an
error of 3e-5 at most."""
DAMPING = 0.01
"""Share of the mean second moment that is added to each, so that the matrix has an inverse."""
_SAMPLE = 64
"""Groups that must be on a grid before all are looked at."""
_BITS = (11, 17)
"""Significant bits of steps: float16's, and those of a float16 times 6 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A matrix (outputs, inputs) as steps * codes + lows."""

    codes: np.ndarray
    """(outputs, groups, group) uint8, below LEVELS."""
    steps: np.ndarray
    """(outputs, groups) float32; may be negative."""
    lows: np.ndarray
    """(outputs, groups) float32: the value of code 0."""

    def values(self) -> np.ndarray:
        """Returns the matrix, (outputs, inputs) float32."""
        made = self.codes * self.steps[..., None] + self.lows[..., None]
        return made.reshape(len(made), -1)

    def packed(self) -> np.ndarray:
        """Returns two codes a byte, the earlier one in the low bits: (outputs, groups, 16)."""
        return self.codes[..., 0::2] | self.codes[..., 1::2] << 4

    def signed(self) -> np.ndarray:
        """Returns the codes of a symmetric grid as multiples of the steps, (outputs, inputs)."""
        return self.codes.reshape(len(self.codes), -1).astype(np.int8) - LEVELS // 2


NO_GRIDS: Mapping[str, Grid] = MappingProxyType({})


def find_grid(matrix: np.ndarray) -> Grid | None:
    """Returns the grid that a matrix is on; None where a value is on none.

    Args:
        matrix: (outputs, inputs) float32.
    """
    outputs, inputs = matrix.shape
    if inputs % GROUP:
        return None
    groups = matrix.reshape(-1, GROUP)
    stride = max(1, len(groups) // _SAMPLE)
    if _grid_of(groups[::stride]) is None:
        return None
    found = _grid_of(groups)
    if found is None:
        return None
    codes, steps, lows = found
    shape = (outputs, inputs // GROUP)
    return Grid(
        codes=codes.reshape(*shape, GROUP), steps=steps.reshape(shape), lows=lows.reshape(shape)
    )


def _grid_of(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns codes, steps and lows of groups (n, GROUP); None where one is on no grid."""
    codes = np.zeros(groups.shape, np.uint8)
    steps, lows = np.zeros(len(groups), np.float32), groups[:, 0].copy()
    open_ = np.flatnonzero((groups != groups[:, :1]).any(axis=1))

    def settle(step: np.ndarray, low: np.ndarray) -> None:
        """Takes a proposal for the groups that are open, where it meets every value."""
        nonlocal open_
        own = groups[open_]
        with np.errstate(divide="ignore", invalid="ignore"):
            code = np.rint((own - low[:, None]) / step[:, None])
        fits = (code >= 0) & (code < LEVELS)
        code = np.where(fits, code, 0).astype(np.uint8)
        met = (fits & (code * step[:, None] + low[:, None] == own)).all(axis=1)
        place = open_[met]
        codes[place], steps[place], lows[place] = code[met], step[met], low[met]
        open_ = open_[~met]

    # Symmetric ones first: the largest magnitude is eight steps away from 0.
    own = groups[open_]
    extreme = np.take_along_axis(own, np.abs(own).argmax(axis=1)[:, None], axis=1)[:, 0]
    step = _shortened(extreme / np.float32(-8), _BITS[0])
    settle(step, -8 * step)
    for bits in _BITS:
        for spanned in range(LEVELS - 1, 0, -1):
            for first in range(LEVELS - spanned):
                if not len(open_):
                    return codes, steps, lows
                own = groups[open_]
                least = own.min(axis=1)
                step = _shortened((own.max(axis=1) - least) / np.float32(spanned), bits)
                settle(step, _shortened(least - first * step, bits))
    return None if len(open_) else (codes, steps, lows)


def _shortened(values: np.ndarray, bits: int) -> np.ndarray:
    """Rounds float32 to so many significant bits."""
    mantissa, exponent = np.frexp(values)
    scale = np.float32(1 << bits)
    return np.ldexp(np.rint(mantissa * scale) / scale, exponent).astype(np.float32)


def board_group(num_inputs: int) -> int | None:
    """Returns the size of groups on a board; None where the inputs make no whole ones."""
    return next((size for size in BOARD_GROUPS if num_inputs % size == 0), None)


def round_to_grid(
    matrix: np.ndarray,
    moments: np.ndarray | None = None,
    *,
    size: int = GROUP,
    symmetric: bool = False,
) -> Grid:
    """Rounds a matrix to 4 bits.

    Args:
        matrix: (outputs, inputs) float32; inputs are a multiple of the size.
        moments: Second moments of the inputs, (inputs, inputs) float64: errors are weighted by
            them and passed on to later inputs; None: each value is rounded for itself.
        size: Inputs of a group.
        symmetric: Whether groups go from -8 to 7 steps.
    """
    outputs, inputs = matrix.shape
    shape = (outputs, inputs // size)
    span = _centred if symmetric else _spanned
    if moments is None:
        groups = matrix.reshape(*shape, size)
        lows, steps = span(groups)
        codes = _coded(groups, lows[..., None], steps[..., None])
        return Grid(codes=codes.astype(np.uint8), steps=steps, lows=lows)
    work, factor = matrix.astype(np.float64), _inverse_factor(moments)
    codes = np.zeros((*shape, size), np.uint8)
    steps, lows = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for group in range(inputs // size):
        start, end = group * size, (group + 1) * size
        own = work[:, start:end]  # a view: what is left of it changes
        low, step = span(own)
        errors = np.zeros_like(own)
        for place in range(size):
            code = _coded(own[:, place], low, step)
            row = factor[start + place, start:end]
            errors[:, place] = (own[:, place] - (code * step + low)) / row[place]
            own[:, place + 1 :] -= np.outer(errors[:, place], row[place + 1 :])
            codes[:, group, place] = code
        work[:, end:] -= errors @ factor[start:end, end:]
        steps[:, group], lows[:, group] = step, low
    return Grid(codes=codes, steps=steps, lows=lows)


def _centred(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns lows and steps that span groups (..., size) symmetrically with the least error."""
    most = np.abs(groups).max(axis=-1)
    best, steps = np.full(most.shape, np.inf), np.zeros(most.shape, np.float32)
    for share in NARROWER:
        step = np.maximum(_half(most * share / (LEVELS // 2 - 1)), LEAST_HALF_STEP)
        wide = step[..., None]
        off = _coded(groups, -LEVELS // 2 * wide, wide) * wide - LEVELS // 2 * wide - groups
        error = np.square(off).sum(axis=-1)
        steps = np.where(error < best, step, steps)
        best = np.minimum(best, error)
    steps = steps.astype(np.float32)
    return -LEVELS // 2 * steps, steps


def _spanned(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns lows and steps that span groups (..., GROUP), as float16 holds them."""
    lows = _half(groups.min(axis=-1))
    return lows, _half((groups.max(axis=-1) - lows) / (LEVELS - 1))


def _coded(values: np.ndarray, lows: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns the codes that are next to values; those of a step of 0 are 0."""
    safe = np.where(steps == 0, 1.0, steps)
    return np.clip(np.rint((values - lows) / safe), 0, LEVELS - 1)


def _half(values: np.ndarray) -> np.ndarray:
    """Rounds to float16, in which steps and lows are stored."""
    return values.astype(np.float16).astype(np.float32)


def _inverse_factor(moments: np.ndarray) -> np.ndarray:
    """Returns the upper U with U^T U = the inverse of the damped moments, (inputs, inputs)."""
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * max(float(np.diag(moments).mean()), 1e-30)
    return np.linalg.cholesky(np.linalg.inv(damped)).T
