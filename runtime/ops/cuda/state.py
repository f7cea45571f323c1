"""The state that kernels read, laid out as their headers say, and the words they publish."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from ...gpu.compile import OPS
from ..core import Progress
from ..rows.contract import CHUNK, RowSpec

_TYPES = {"double": "f8", "int": "i4", "unsigned": "u4", "float": "f4"}

RING = 4
"""Progress words kept: the host reads one behind the last, so it may be two behind the device."""
MAX_BLOCK = 2**15 - 1
"""Positions that a progress word can count."""
MAX_VOCAB = 2**18
"""Ids of a row: a thread's bins of top-k and top-p add up 1,024 weights at least."""
_COUNT_BITS = 15
_SEQUENCE_SHIFT = 47
SEQUENCE_MASK = 2**17 - 1


def read_struct(header: str, name: str) -> np.dtype:
    """Gives the layout of a C structure: one `type name;` or `type name[COUNT];` per line.

    Args:
        header: Its path from OPS, by which it also includes that of a structure to derive from.
        name: Of the structure.
    """
    return np.dtype(_fields(header, name), align=True)


def _fields(header: str, name: str) -> list[tuple[Any, ...]]:
    text = (OPS / header).read_text("utf-8")
    found = re.search(rf"struct {name}(?: : (\w+))? {{ *(?://[^\n]*)?\n(.*?)\n}};", text, re.DOTALL)
    assert found is not None, f"{header} has no struct {name}"
    fields: list[tuple[Any, ...]] = []
    if found[1]:
        fields = _fields(_header_of(text, found[1]), found[1])
        size = np.dtype(fields, align=True).itemsize
        assert size == np.dtype(fields).itemsize, f"struct {found[1]} has a gap"
    for line in found[2].split("\n"):
        match = re.match(r"  (.+?)(\*?) ?(\w+)(?:\[(\w+)\])?;", line)
        assert match is not None, f"{header}: {line}"
        kind = "u8" if match[2] else _TYPES[match[1].strip()]
        count = re.search(rf"{match[4]} = (\d+);", text) if match[4] else None
        fields.append((match[3], kind, *([(int(count[1]),)] if count else [])))
    return fields


def _header_of(text: str, name: str) -> str:
    """Finds the header, among those that a text includes, that declares a structure."""
    for path in re.findall(r'#include "(.+)"', text):
        if f"struct {name} " in (OPS / path).read_text("utf-8"):
            return path
    raise AssertionError(f"no header that is included declares struct {name}")


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


def write_rows(state: Any, spec: RowSpec) -> None:
    """Writes how a slot's rows are drawn from into its state, pointers aside."""
    sampling = spec.sampling
    state["block"], state["vocab"] = spec.block, spec.vocab_size
    state["chunks"] = -(-spec.vocab_size // CHUNK)
    state["top_k"] = sampling.top_k or 0
    state["top_p"] = 1.0 if sampling.top_p is None else sampling.top_p
    state["greedy"] = sampling.greedy
    state["inverse_temperature"] = 1.0 / (sampling.temperature or 1.0)
    penalty = np.float32(sampling.repetition_penalty)
    state["penalty"], state["inverse_penalty"] = penalty, np.float32(1.0) / penalty
    state["processed"] = spec.bias is not None or penalty != 1.0
    state["permitted_stride"] = 0 if spec.allowed is None else 2 * state["chunks"]
    state["seed_low"], state["seed_high"] = spec.seed & 0xFFFFFFFF, spec.seed >> 32
    state["sample_index"] = spec.sample_index


def permitted_bits(spec: RowSpec) -> np.ndarray:
    """Folds banned ids, allowed bits and the vocabulary's end into one set of bits.

    Returns:
        (block or 1, 2 ceil(V / 64)) uint32; bit j of word w admits token 32 w + j.
    """
    own = np.zeros(-(-spec.vocab_size // 64) * 64, np.uint8)
    own[: spec.vocab_size] = 1
    own[list(spec.banned)] = 0
    bits = np.packbits(own, bitorder="little").view("<u4")[None].astype(np.uint32)
    if spec.allowed is None:
        return bits
    rows = np.repeat(bits, len(spec.allowed), axis=0)
    rows[:, : spec.allowed.shape[1]] &= spec.allowed
    return rows


def row_threads(spec: RowSpec, warps: int) -> int:
    """Gives the threads that share a row, of at most so many warps."""
    return 32 * min(warps, max(2, -(-spec.vocab_size // 256)))
