"""What nvdisasm prints of a cubin, as instructions, blocks and loops. Knows no kernel of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import PurePath

_SECTION = re.compile(r"^\.text\.(\w+):")
_LABEL = re.compile(r"^(\.L_\w+):")
_PLACE = re.compile(r'"([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;"
)
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_ENDS = ("EXIT", "RET", "BRK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction, without its encoding."""

    opcode: str
    """With its modifiers, such as `LDG.E.U16`."""
    operands: str
    predicated: bool
    places: frozenset[tuple[str, int]]
    """(file's name, line) that it comes from, and of all calls that were inlined around it."""

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> str | None:
        """The label that it may jump to; none for calls and for what only prepares a jump."""
        found = _TARGET.search(self.operands)
        return found[1] if found and self.opcode == "BRA" else None


@dataclass(slots=True)
class Block:
    """Instructions that run one after another, and what may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    following: list[int] = field(default_factory=list)


def functions(text: str) -> dict[str, list[Block]]:
    """Gives the basic blocks of each kernel in nvdisasm's output, in the order of addresses.

    Args:
        text: Of `nvdisasm -c -gi`; without `-gi`, instructions have no places.
    """
    return {name: _blocks(lines) for name, lines in _sections(text)}


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.splitlines():
        found = _SECTION.match(line)
        if found or line.startswith("\t.section"):
            if name:
                yield name, lines
            name, lines = found[1] if found else "", []
        elif name:
            lines.append(line)
    if name:
        yield name, lines


def _blocks(lines: list[str]) -> list[Block]:
    blocks, labels = [Block()], {}
    places: set[tuple[str, int]] = set()
    was_place = False
    for line in lines:
        label, found = _LABEL.match(line), _INSTRUCTION.match(line)
        if label:
            if blocks[-1].instructions:
                blocks.append(Block())
            labels[label[1]] = len(blocks) - 1
        elif "//## File" in line:
            here = {(PurePath(name).name, int(number)) for name, number in _PLACE.findall(line)}
            places = places | here if was_place else here
        elif found:
            predicate, opcode, operands = found.groups()
            blocks[-1].instructions.append(
                Instruction(
                    opcode=opcode,
                    operands=operands,
                    predicated=predicate is not None,
                    places=frozenset(places),
                )
            )
            if opcode == "BRA" or opcode.startswith(_ENDS):
                blocks.append(Block())
        if label is None:
            was_place = "//## File" in line
    _connect(blocks, labels)
    return blocks


def _connect(blocks: list[Block], labels: dict[str, int]) -> None:
    for index, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        goes_on = last is None or not (
            (last.opcode == "BRA" or last.opcode.startswith(_ENDS)) and not last.predicated
        )
        if last is not None and last.target in labels:
            block.following.append(labels[last.target])
        if goes_on and index + 1 < len(blocks):
            block.following.append(index + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A natural loop."""

    head: int
    blocks: frozenset[int]


def loops(blocks: list[Block]) -> list[Loop]:
    """Gives every natural loop, by its head: a jump back, and all that leads to it from there."""
    before: dict[int, set[int]] = {}
    for index, block in enumerate(blocks):
        for following in block.following:
            before.setdefault(following, set()).add(index)
    bodies: dict[int, set[int]] = {}
    for index, block in enumerate(blocks):
        for head in block.following:
            if head > index:
                continue
            body, open_ = {head, index}, [index]
            while open_:
                node = open_.pop()
                if node != head:
                    new = before.get(node, set()) - body
                    body |= new
                    open_.extend(new)
            # What lies before the head belongs to no loop that begins there.
            if min(body) == head:
                bodies.setdefault(head, set()).update(body)
    return [Loop(head=head, blocks=frozenset(body)) for head, body in sorted(bodies.items())]


def shortest_turn(blocks: list[Block], loop: Loop, through: list[int]) -> list[Instruction]:
    """Gives the fewest instructions of one turn of a loop that passes certain blocks.

    Args:
        blocks: Of the kernel.
        loop: One of its loops; what it may leave out it leaves out.
        through: Blocks of the loop that it does not leave out.
    """
    found: list[Instruction] = []
    middle = {one for one in through if one != loop.head}
    ahead = sorted(middle, key=lambda one: len(_shortest(blocks, loop, loop.head, one)))
    stations = [loop.head, *ahead, loop.head]
    for begin, end in pairwise(stations):
        found += _shortest(blocks, loop, begin, end)
    return found


def _shortest(blocks: list[Block], loop: Loop, begin: int, end: int) -> list[Instruction]:
    """The instructions from one block to before another, by Dijkstra's algorithm."""
    waiting: list[tuple[int, tuple[int, ...]]] = [(0, (begin,))]
    done: set[int] = set()
    while waiting:
        cost, path = heappop(waiting)
        if path[-1] == end and len(path) > 1:
            return [one for index in path[:-1] for one in blocks[index].instructions]
        if path[-1] in done:
            continue
        done.add(path[-1])
        cost += len(blocks[path[-1]].instructions)
        for following in blocks[path[-1]].following:
            if following in loop.blocks:
                heappush(waiting, (cost, (*path, following)))
    return []
