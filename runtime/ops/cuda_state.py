"""The canvas's state as kernels/canvas.cuh lays it out, and the progress word it publishes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .base import Progress
from .rows.contract import Sampling
from .unmask.contract import Selection

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
_TYPES = {"double": "f8", "int": "i4", "unsigned": "u4", "float": "f4"}


def read_struct(header: Path, name: str) -> np.dtype:
    """Gives the layout of a C structure: one `type name;` or `type name[COUNT];` per line."""
    text = header.read_text("utf-8")
    body = re.search(rf"struct {name} {{\n(.*?)\n}};", text, re.DOTALL)
    assert body is not None, f"{header.name} has no struct {name}"
    fields: list[tuple[Any, ...]] = []
    for line in body[1].split("\n"):
        match = re.match(r"  (.+?)(\*?) ?(\w+)(?:\[(\w+)\])?;", line)
        assert match is not None, f"{header.name}: {line}"
        kind = "u8" if match[2] else _TYPES[match[1].strip()]
        count = re.search(rf"{match[4]} = (\d+);", text) if match[4] else None
        fields.append((match[3], kind, *([(int(count[1]),)] if count else [])))
    return np.dtype(fields, align=True)


STATE = read_struct(KERNELS / "canvas.cuh", "Canvas")

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


def sampling_state(state: np.ndarray, sampling: Sampling, seed: int, index: int) -> None:
    """Writes how tokens are drawn into a state."""
    state["top_k"] = sampling.top_k or 0
    state["top_p"] = 1.0 if sampling.top_p is None else sampling.top_p
    state["greedy"] = sampling.greedy
    state["inverse_temperature"] = 1.0 / (sampling.temperature or 1.0)
    penalty = np.float32(sampling.repetition_penalty)
    state["penalty"], state["inverse_penalty"] = penalty, np.float32(1.0) / penalty
    state["seed_low"], state["seed_high"] = seed & 0xFFFFFFFF, seed >> 32
    state["sample_index"] = index


def selection_state(state: np.ndarray, selection: Selection | None) -> None:
    """Writes which positions are committed into a state."""
    if selection is not None:
        state["kind"], state["score_kind"] = selection.kind, selection.score
        state["steps"], state["limit"] = selection.steps or 0, selection.limit


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
