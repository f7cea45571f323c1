"""Counter-based random numbers: Philox4x32-10, the same on every backend, batch and bucket.

A draw is a pure function of (seed, sample index, position, step, kind), so a token's randomness
depends on nothing else: not on how rows are grouped, which context bucket ran, or what ran before.
Knows nothing of tokens.

Layout, to be reproduced bit for bit by a kernel:

| word | holds |
|---|---|
| key 0 | seed, low 32 bits |
| key 1 | sample index |
| counter 0 | absolute position in the text |
| counter 1 | step within the block (or window index, for the bound) |
| counter 2 | draw kind |
| counter 3 | seed, high 32 bits |

The 64-bit draw is x = r0 + 2^32 r1 of the four output words (r2, r3 are not used), and the uniform
is (x >> 11) * 2^-53: float64 in [0, 1), exact.

Gaussians come four from one counter, whose kind word is LATENT + 256 g for components 4 g to
4 g + 3: with a_i = r_i >> 8 of 24 bits, pairs (a0, a1) and (a2, a3) become
sqrt(-2 log((a + 1) 2^-24)) times cosine and sine of 2 pi b 2^-24 (Box-Muller, float32). Uniforms
are equal to the last bit on every backend, Gaussians to 2e-6.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); constants and
known answers from Random123.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from ..errors import ConfigError

MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
NUM_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_UNUSED_BITS = np.uint64(11)


class DrawKind(IntEnum):
    """What a draw decides; one kind never shares a counter with another."""

    TOKEN = 0
    """Which token a position takes."""
    SELECT = 1
    """Whether, or how early, a position is committed."""
    TIME = 2
    """The next hitting time of a block (at the block's first position)."""
    CHOICE = 3
    """Which masked position is hit (at the block's first position)."""
    CORRUPT = 4
    """Which positions the bound masks."""
    LEVEL = 5
    """How many positions the bound masks."""
    NOISE = 6
    """Which token a position starts from, or is replaced by in the bound."""
    ACCEPT = 7
    """Whether a draft is kept (at the draft's position)."""
    DRAFT = 8
    """Which token a position is drafted as."""
    LATENT = 9
    """A latent's noise; the word's higher bits say which components."""


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Applies Philox4x32-10.

    Args:
        counter: (4, N) uint32-valued, any integer dtype.
        key: (2,) uint32-valued, any integer dtype.

    Returns:
        (4, N) uint32: the four output words of each counter.
    """
    words = np.asarray(counter).astype(np.uint64)
    even, odd = words[0::2], words[1::2]
    round_key = np.asarray(key).astype(np.uint64).reshape(2, 1)
    for _ in range(NUM_ROUNDS):
        product = even * MULTIPLIERS
        even = (product >> _HALF)[::-1] ^ odd ^ round_key
        odd = (product & _LOW)[::-1]
        round_key = (round_key + WEYL) & _LOW
    return np.stack([even[0], odd[0], even[1], odd[1]]).astype(np.uint32)


def uniforms(
    seed: int,
    sample_index: int,
    position: np.ndarray | int,
    step: np.ndarray | int,
    kind: DrawKind,
) -> np.ndarray:
    """Draws one uniform per (position, step), which broadcast against each other.

    Args:
        seed: Less than 2^64.
        sample_index: Less than 2^32.
        position: Absolute positions, any shape.
        step: Steps, any shape.
        kind: What the draws decide.

    Returns:
        float64 in [0, 1), of the broadcast shape.
    """
    where, when = np.broadcast_arrays(position, step)
    counter = np.empty((4, where.size), dtype=np.uint64)
    counter[0] = where.reshape(-1)
    counter[1] = when.reshape(-1)
    counter[2] = int(kind)
    counter[3] = seed >> 32
    words = philox(counter, np.array([seed & 0xFFFFFFFF, sample_index], dtype=np.uint64))
    draw = words[0].astype(np.uint64) | (words[1].astype(np.uint64) << _HALF)
    return ((draw >> _UNUSED_BITS) * 2.0**-53).reshape(where.shape)


def gaussians(
    seed: int, sample_index: int, position: np.ndarray, step: int, width: int
) -> np.ndarray:
    """Draws standard normal vectors.

    Args:
        seed: Less than 2^64.
        sample_index: Less than 2^32.
        position: (rows,) absolute positions.
        step: Draws of different steps are independent.
        width: Components.

    Returns:
        (rows, width) float32.
    """
    groups = -(-width // 4)
    counter = np.empty((4, len(position), groups), np.uint64)
    counter[0] = np.asarray(position)[:, None]
    counter[1] = step
    counter[2] = int(DrawKind.LATENT) + 256 * np.arange(groups)
    counter[3] = seed >> 32
    key = np.array([seed & 0xFFFFFFFF, sample_index], dtype=np.uint64)
    bits = (philox(counter.reshape(4, -1), key) >> 8).reshape(2, 2, -1)
    radius = np.sqrt(-2.0 * np.log((bits[:, 0] + np.float32(1)) * np.float32(2.0**-24)))
    angle = bits[:, 1] * (2.0 * np.pi * 2.0**-24)
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    # (pair, cosine or sine, row x group) to a row's components in order.
    return (
        both.reshape(4, len(position), groups)
        .transpose(1, 2, 0)
        .reshape(len(position), -1)[:, :width]
    )


def check_key(seed: int, sample_index: int) -> None:
    """Raises ConfigError unless seed and sample index fit the key."""
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be a whole number from 0 to 2^64 - 1, not {seed}")
    if not 0 <= sample_index < 2**32:
        raise ConfigError(f"sample index must be in [0, 2^32), not {sample_index}")
