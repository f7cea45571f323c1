"""The canvas's state as kernels/canvas.cuh lays it out, and the progress word it publishes.

Members stand in the order of the C structure, wide ones first, so that neither side pads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..decoding import RULES, DecodingSettings
from .base import Progress

POINTERS = (
    "ids", "masked", "chosen", "candidate", "score", "log_prob", "unmask_chance",
    "transition", "sigma", "told", "times", "bias", "permitted", "seen", "sums", "rank", "staged",
    "published", "shown",
)  # fmt: skip
DOUBLES = ("time", "top_p", "factor", "entropy_bound")
WORDS = (
    "block", "vocab", "chunks", "permitted_stride", "rule", "score_kind", "steps", "num_chances",
    "top_k", "mask_token_id", "eos_token_id", "seed_low", "seed_high", "sample_index", "greedy",
    "inverse_temperature", "penalty", "threshold", "position", "first", "step", "num_masked",
    "num_masked_at_start", "error", "sequence", "num_steps", "inverse_penalty", "processed",
    "num_times", "num_kept",
)  # fmt: skip
_UNSIGNED = ("seed_low", "seed_high", "sample_index", "sequence")
_FLOATS = ("inverse_temperature", "penalty", "threshold", "inverse_penalty")

STATE = np.dtype(
    [
        *((name, np.uint64) for name in POINTERS),
        *((name, np.float64) for name in DOUBLES),
        *(
            (name, np.uint32 if name in _UNSIGNED else np.float32 if name in _FLOATS else np.int32)
            for name in WORDS
        ),
    ]
)

RULE_CODES = {
    "low_confidence": 0, "entropy": 0, "margin": 0, "next_token": 0, "threshold": 1, "factor": 2,
    "entropy_bound": 3, "random": 4, "first_hitting": 5, "ancestral": 6,
    "tweedie": 7, "euler": 7, "draft_verify": 0,
}  # fmt: skip
"""Enum Rule of canvas.cuh; `next_token` is one position of a fixed number, `draft_verify` reads
none of them."""
SCORE_CODES = {"none": 0, "confidence": 1, "entropy": 2, "margin": 3}
"""Enum Score of canvas.cuh."""

RING = 4
"""Progress words kept: the host reads one behind the last, so it may be two behind the device."""
MAX_BLOCK = 2**15 - 1
"""Positions that a progress word can count."""
MAX_VOCAB = 2**18
"""Ids of a row: a thread's bins of top-k and top-p add up 1,024 weights at least."""
_COUNT_BITS = 15
_SEQUENCE_SHIFT = 47
SEQUENCE_MASK = 2**17 - 1


class Published(NamedTuple):
    """A progress word, unpacked."""

    progress: Progress
    failed: bool
    """True when a row had no finite highest logit."""
    sequence: int
    """Which word this is, modulo 2^17."""


def unpack(word: int) -> Published:
    """Reads a progress word."""
    masked, committed, final = (word >> (_COUNT_BITS * i) & MAX_BLOCK for i in range(3))
    return Published(
        Progress(masked, committed, final, bool(word >> 45 & 1)),
        bool(word >> 46 & 1),
        word >> _SEQUENCE_SHIFT,
    )


def settings_state(state: np.ndarray, settings: DecodingSettings, seed: int, index: int) -> None:
    """Writes what the settings and the seed say into a state, ()."""
    state["rule"] = RULE_CODES[settings.rule]
    state["score_kind"] = SCORE_CODES[RULES[settings.rule].score]
    state["steps"] = 0 if settings.rule == "next_token" else settings.steps or 0
    state["top_k"] = settings.top_k or 0
    state["top_p"] = 1.0 if settings.top_p is None else settings.top_p
    state["factor"] = settings.factor or 0.0
    state["entropy_bound"] = settings.entropy_bound or 0.0
    state["threshold"] = settings.threshold or 0.0
    state["greedy"] = settings.greedy
    state["inverse_temperature"] = 1.0 / (settings.temperature or 1.0)
    penalty = np.float32(settings.repetition_penalty)
    state["penalty"], state["inverse_penalty"] = penalty, np.float32(1.0) / penalty
    state["seed_low"], state["seed_high"] = seed & 0xFFFFFFFF, seed >> 32
    state["sample_index"] = index


def permitted_bits(
    vocab_size: int, banned: tuple[int, ...], allowed: np.ndarray | None
) -> np.ndarray:
    """Folds banned ids, allowed bits and the vocabulary's end into one set of bits.

    Args:
        vocab_size: V.
        banned: Ids never sampled.
        allowed: (block, ceil(V / 32)) uint32, or None.

    Returns:
        (block or 1, 2 ceil(V / 64)) uint32; bit j of word w admits token 32 w + j.
    """
    own = np.zeros(-(-vocab_size // 64) * 64, np.uint8)
    own[:vocab_size] = 1
    own[list(banned)] = 0
    bits = np.packbits(own, bitorder="little").view("<u4")[None].astype(np.uint32)
    if allowed is None:
        return bits
    rows = np.repeat(bits, len(allowed), axis=0)
    rows[:, : allowed.shape[1]] &= allowed
    return rows
