"""The loops over the vocabulary in a kernel's machine code, and what executes their instructions.

Loops are known by the functions of the sources that their instructions come from. Of a loop, the
plainest turn is counted: all ids of a chunk permitted, no bias and no penalty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .sass import Block, Instruction, Loop, loops, shortest_turn

PER_TURN = 8
"""Logits that a thread reads in one turn of a loop over the vocabulary."""
PASSES = (
    "statistics", "heated_statistics", "sum_some_chunks", "sum_turns", "sort_into_bins", "collect",
    "highest",
)  # fmt: skip
"""Functions that have such loops."""
WEIGHTS = ("Floored", "Equal", "Residual", "Drawn", "Kept", "Lowered")
"""What they take of logits, those first that hold others."""
STORING = {"sort_into_bins": ("ATOMS", ", all sorted"), "collect": ("STS", ", some listed")}
"""Of those that store some weights: the instruction that does, and the turn in which it happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A GPU as far as a count needs it. From `issue` on: lanes per clock and multiprocessor.

    Sources: CUDA C++ programming guide, "Arithmetic instructions", columns 8.6 and 9.0 (Orin's
    GA10B is a GA10x: 128 lanes of float, a 64th of it in double precision); Jetson Orin Nano data
    sheet; H200 data sheet.
    """

    architecture: str
    multiprocessors: int
    clock_hz: float
    bytes_per_second: float
    l2_bytes: int
    registers: int = 65536
    threads: int = 1536
    shared_bytes: int = 167936
    issue: float = 128
    float_: float = 128
    integer: float = 64
    special: float = 16
    memory: float = 32
    double: float = 2


TARGETS: Mapping[str, Target] = {
    "Orin Nano, MAXN SUPER": Target(
        architecture="sm_87", multiprocessors=8, clock_hz=1.02e9, bytes_per_second=102.4e9,
        l2_bytes=2 << 20,
    ),
    "Orin Nano, 15W": Target(
        architecture="sm_87", multiprocessors=8, clock_hz=0.612e9, bytes_per_second=68.3e9,
        l2_bytes=2 << 20,
    ),
    "H200": Target(
        architecture="sm_90", multiprocessors=132, clock_hz=1.755e9, bytes_per_second=4.8e12,
        l2_bytes=50 << 20, threads=2048, shared_bytes=233472, double=64,
    ),
}  # fmt: skip

_FLOAT = {"FADD", "FMUL", "FFMA", "HADD2", "HFMA2", "IMAD", "FADD32I", "FMUL32I", "FFMA32I"}
_MEMORY = {"LDG", "LD", "STG", "ST", "LDS", "STS", "ATOMS", "ATOMG", "RED", "SHFL", "LDL", "STL",
           "LDC", "BAR", "REDUX"}  # fmt: skip
_DOUBLE = {"DADD", "DMUL", "DFMA", "DSETP"}
_SPECIAL = {"MUFU", "F2I", "I2F", "F2F", "POPC", "FLO", "BREV", "S2R"}


def pipe_of(instruction: Instruction) -> str:
    """Names the pipe of a multiprocessor that executes an instruction."""
    if instruction.name in _DOUBLE or ("64" in instruction.opcode and instruction.name in _SPECIAL):
        return "double"
    for names, pipe in ((_FLOAT, "float_"), (_MEMORY, "memory"), (_SPECIAL, "special")):
        if instruction.name in names:
            return pipe
    return "integer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A loop over the vocabulary."""

    name: str
    """Its function, and the weights that it takes."""
    counts: Mapping[str, int]
    """Instructions of a turn by pipe."""
    lines: int
    """Clocks of the load pipe beyond one per load: one per 128-byte line that a warp touches."""

    def clocks(self, target: Target) -> Mapping[str, float]:
        """Gives the clocks of a multiprocessor per logit, by what takes them."""
        logits = 32 * PER_TURN
        found = {
            pipe: 32 * count / getattr(target, pipe) / logits for pipe, count in self.counts.items()
        }
        found["issue"] = 32 * sum(self.counts.values()) / target.issue / logits
        memory = self.counts.get("memory", 0) + self.lines
        found["memory"] = memory * 32 / target.memory / logits
        return found


def named_lines(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, range]]:
    """Finds functions and structures of the kernel sources: by name, file and lines."""
    found = {}
    for path in sorted(folder.glob("*/*.cu*")):
        lines = path.read_text("utf-8").splitlines()
        for index, line in enumerate(lines):
            match = re.match(r"(?:__device__.*?|struct )\b(\w+)(?:\(| \{)", line)
            if match and match[1] in names:
                end = next(i for i in range(index, len(lines)) if lines[i] in ("}", "};"))
                found[match[1]] = (path.name, range(index + 1, end + 2))
    return found


def _stands_in(one: Instruction, where: tuple[str, range]) -> bool:
    return any(file == where[0] and line in where[1] for file, line in one.places)


def _reading_block(blocks: list[Block], loop: Loop) -> int | None:
    """The block that reads eight logits without asking which are permitted.

    They are single loads, or, in a loop that has none such, loads of 16 bytes: the way of rows that
    begin where they may. Eight single ones beside those, under the opposite predicate, are that of
    other rows.
    """
    found, wide = [], None
    for index in loop.blocks:
        loads = [one for one in blocks[index].instructions if _loads(one)]
        single = [one for one in loads if ".128" not in one.opcode]
        if sum(not one.predicated for one in single) >= PER_TURN:
            found.append((len(loads), index))
        elif len(single) < len(loads):
            wide = index
    return min(found)[1] if found else wide


def _loads(one: Instruction) -> bool:
    return one.name in ("LDG", "LD")


def _happening(turn: list[Instruction]) -> list[Instruction]:
    """The loads that happen: of wide and single ones under opposite predicates the wide."""
    loads = [one for one in turn if _loads(one)]
    some_wide = any(".128" in one.opcode for one in loads)
    return [one for one in loads if not (some_wide and one.predicated and ".128" not in one.opcode)]


def _more_lines(loads: list[Instruction]) -> int:
    """Lines of 128 bytes beyond the first that the loads of a turn touch.

    Four chunks are in a line each; where a lane reads 32 bytes by two loads, each touches eight.
    The words that say what is permitted are in one line, and read by LD instead of LDG.
    """
    wide = sum(".128" in one.opcode for one in loads)
    single = sum(".128" not in one.opcode and one.name == "LDG" for one in loads)
    return wide * (4 * wide - 1) + 3 * single


def row_loops(blocks: list[Block]) -> list[tuple[Loop, int]]:
    """Gives the innermost loops that read logits, and the block of each that does."""
    found = [(loop, _reading_block(blocks, loop)) for loop in loops(blocks)]
    return [
        (loop, reading)
        for loop, reading in found
        if reading is not None
        and not any(other.blocks < loop.blocks and inner is not None for other, inner in found)
    ]


def passes(blocks: list[Block], where: Mapping[str, tuple[str, range]]) -> list[Pass]:
    """Gives a kernel's loops over the vocabulary."""
    found = []
    for loop, reading in row_loops(blocks):
        inside = [one for index in loop.blocks for one in blocks[index].instructions]
        shares = {
            name: sum(_stands_in(one, where[name]) for one in inside) / len(inside)
            for name in where
        }
        name = max((one for one in PASSES if one in shares), key=lambda one: shares[one])
        if not shares[name]:
            continue  # a loop over chunk sums
        kinds = [one for one in WEIGHTS if shares.get(one)]
        if name != "sum_turns" or kinds[-1] != "Kept":  # which turns others', truncated or not
            kinds = kinds[:1]
        full = " of ".join([name, *(one for one in kinds if one != "Drawn" or one is kinds[0])])
        found.append(_pass(full, shortest_turn(blocks, loop, [reading])))
        if name in STORING:
            storing, happens = STORING[name]
            turn = _storing_turn(blocks, loop, reading, storing)
            found.append(_pass(full + happens, turn))
    return found


def _storing_turn(blocks: list[Block], loop: Loop, reading: int, storing: str) -> list[Instruction]:
    """A turn through every block that stores; of several ways, through the first that is found."""
    turn, through = shortest_turn(blocks, loop, [reading]), [reading]
    first = turn[0]
    for index in sorted(loop.blocks):
        if any(one.name == storing for one in blocks[index].instructions):
            longer = shortest_turn(blocks, loop, [*through, index])
            if sum(one is first for one in longer) == 1:
                turn, through = longer, [*through, index]
    return turn


def _pass(name: str, turn: list[Instruction]) -> Pass:
    counts = Counter(pipe_of(one) for one in turn)
    happening = _happening(turn)
    counts["memory"] -= sum(map(_loads, turn)) - len(happening)
    return Pass(name=name, counts=dict(counts), lines=_more_lines(happening))
