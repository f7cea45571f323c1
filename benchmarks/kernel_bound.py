"""How fast the kernels can be at best, by counting the instructions that nvcc makes of them.

    python -m dlm_edge.benchmarks.kernel_bound -o kernel-bound.json

**A bound by counting, not a measurement**: it needs nvcc and nvdisasm, and no GPU. Every loop over
the vocabulary is taken from the machine code; of one turn, which reads eight logits per thread, the
instructions are counted by the pipe that executes them. A row takes at least what its busiest pipe
takes, or the memory; the copy that it is held against reads and writes the same bytes at full
bandwidth. What a GPU does besides (waiting for memory, barriers, a last wave that does not fill it)
makes it slower than this; a bound above 1.25 copies says that the goal cannot be met, one below
that it may be.

Turns are the plainest there are: all ids of a chunk permitted, no bias and no penalty, scores by
confidence. Of top-k and top-p, the first two passes sort every weight into a bin and the third few.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from ..runtime.cli_common import DlmCommand
from ..runtime.errors import ConfigError
from ..runtime.ops.cuda_ops import KERNELS
from .report import print_table, record, write_json
from .sass import Block, Instruction, Loop, functions, loops, shortest_turn

PER_TURN = 8
"""Logits that a thread reads in one turn of a loop over the vocabulary."""
PASSES = ("statistics", "sum_chunks", "fill_bins", "highest")
"""Functions that have such loops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A GPU as far as a count needs it. Lanes per clock and multiprocessor, but for the first five.

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
    lines: float
    """Clocks of the load pipe for a turn's loads: one per 128-byte line that a warp touches."""

    def clocks(self, target: Target) -> Mapping[str, float]:
        """Gives the clocks of a multiprocessor per logit, by what takes them."""
        logits = 32 * PER_TURN
        found = {
            pipe: 32 * count / getattr(target, pipe) / logits for pipe, count in self.counts.items()
        }
        found["issue"] = 32 * sum(self.counts.values()) / target.issue / logits
        memory = self.counts.get("memory", 0) - PER_TURN + self.lines
        found["memory"] = memory * 32 / target.memory / logits
        return found


def named_lines(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, range]]:
    """Finds functions and structures of the kernel sources: by name, file and lines."""
    found = {}
    for path in sorted(folder.glob("*.cu*")):
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
    """The block that reads eight logits or more without asking which are permitted."""
    found = None
    for index in sorted(loop.blocks):
        loads = [
            one
            for one in blocks[index].instructions
            if one.name in ("LDG", "LD") and not one.predicated
        ]
        if len(loads) >= PER_TURN and found is None:
            found = index
    return found


def passes(blocks: list[Block], where: Mapping[str, tuple[str, range]]) -> list[Pass]:
    """Gives a kernel's loops over the vocabulary."""
    found = []
    for loop in loops(blocks):
        reading = _reading_block(blocks, loop)
        if reading is None:
            continue
        inside = [one for index in loop.blocks for one in blocks[index].instructions]
        shares = {
            name: sum(_stands_in(one, where[name]) for one in inside) / len(inside)
            for name in where
        }
        name = max((one for one in PASSES if one in shares), key=lambda one: shares[one])
        kinds = [one for one in ("Equal", "Kept", "Residual", "Lowered") if shares.get(one)]
        full = " of ".join([name, *kinds[:1]])
        found.append(_pass(full, shortest_turn(blocks, loop, [reading])))
        if name == "fill_bins":
            puts = [
                index
                for index in sorted(loop.blocks)
                if index > reading
                and any(
                    one.name == "STS" and _stands_in(one, where["put"])
                    for one in blocks[index].instructions
                )
            ]
            found.append(_pass(f"{full}, all sorted", shortest_turn(blocks, loop, [reading, *puts])))
    return found


def _pass(name: str, turn: list[Instruction]) -> Pass:
    counts = Counter(pipe_of(one) for one in turn)
    # A load's lanes are in four chunks, each in a line of its own.
    return Pass(name=name, counts=dict(counts), lines=4.0 * PER_TURN)


def tool(name: str, given: str | None) -> str:
    """Finds a program of the toolkit; ConfigError says where to get it."""
    found = given or shutil.which(name)
    if found is None or shutil.which(found) is None:
        raise ConfigError(
            f"{name} is not here: install the CUDA toolkit, or give its path with --{name} "
            "(nvdisasm alone comes as the package nvidia-cuda-nvdisasm)"
        )
    return found


def resources(text: str) -> dict[str, dict[str, int]]:
    """Reads `ptxas -v`: registers, shared memory and spilled bytes of each kernel."""
    found = {}
    for part in text.split("Compiling entry function '")[1:]:
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", part)
        if registers:
            found[part.split("'")[0]] = {
                "registers": int(registers[1]),
                "shared_bytes": int(shared[1]) if shared else 0,
                "spilled_bytes": sum(map(int, spills)),
            }
    return found


def read_kernels(
    source: Path, architecture: str, nvcc: str, nvdisasm: str
) -> tuple[dict[str, dict[str, int]], dict[str, list[Block]]]:
    """Compiles a source and takes the image apart: resources and blocks by kernel."""
    with TemporaryDirectory() as folder:
        image = Path(folder) / "image.cubin"
        options = ["-lineinfo", f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
        compiled = _run([nvcc, *options, "-o", str(image), str(source)])
        return resources(compiled.stderr), functions(_run([nvdisasm, "-c", "-gi", str(image)]).stdout)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").split("\n")[0]
        raise ConfigError(f"{Path(command[0]).name} fails: {reason[:200]}")
    return done


WAYS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "sample": {
        "greedy": ("statistics",),
        "drawn": ("statistics", "sum_chunks"),
        "top-k or top-p": (
            "statistics", "fill_bins of Kept, all sorted", "fill_bins of Kept, all sorted",
            "fill_bins of Kept", "sum_chunks of Kept",
        ),
    },
    "transit": {
        "no offset": ("sum_chunks",),
        "offset": ("sum_chunks", "sum_chunks of Lowered"),
    },
    "propose": {"greedy": ("statistics",), "drawn": ("statistics", "sum_chunks of Kept")},
    "verify": {
        "greedy": ("statistics",),
        "kept": ("statistics", "sum_chunks of Kept"),
        "rejected": ("statistics", "sum_chunks of Kept", "sum_chunks of Residual"),
    },
}  # fmt: skip
"""Passes over a row, by kernel and what it is asked for."""


def bound(
    ways: Sequence[Pass], target: Target, *, bytes_each: int, vocab: int, rows_at_once: int
) -> dict[str, Any]:
    """Gives the least time of a kernel that reads rows in some passes, over a copy of them.

    Args:
        ways: The passes.
        target: The GPU, with rows enough for all of it.
        bytes_each: Of a logit.
        vocab: Logits of a row.
        rows_at_once: Rows that are in the second-level cache at once; a row that stays there is
            read from memory once.
    """
    each = target.multiprocessors * target.clock_hz
    stays = rows_at_once * vocab * bytes_each <= target.l2_bytes
    clocks: Counter[str] = Counter()
    for one in ways:
        for pipe, value in one.clocks(target).items():
            clocks[pipe] += value
    reading = bytes_each * (1 if stays else len(ways)) / target.bytes_per_second
    busiest = max(clocks, key=lambda pipe: clocks[pipe])
    copy = 2 * bytes_each / target.bytes_per_second
    return {
        "clocks_per_logit": {pipe: round(value, 4) for pipe, value in sorted(clocks.items())},
        "busiest": "memory bandwidth" if reading > clocks[busiest] / each else busiest.strip("_"),
        "passes": len(ways),
        "stays_in_l2": stays,
        "over_copy": round(max(reading, clocks[busiest] / each) / copy, 3),
    }


def blocks_at_once(target: Target, found: Mapping[str, int], threads: int) -> int:
    """Gives the thread blocks that a multiprocessor holds at once."""
    registers = -(-found["registers"] // 8) * 8 * threads
    shared = found["shared_bytes"] + 1024
    return min(target.threads // threads, target.registers // registers, target.shared_bytes // shared)


def count(nvcc: str, nvdisasm: str, vocab: int) -> list[dict[str, Any]]:
    """Counts every kernel of every source for every target."""
    where = named_lines(KERNELS, (*PASSES, "put", "Kept", "Equal", "Residual", "Lowered"))
    read: dict[str, Any] = {}
    rows = []
    for label, target in TARGETS.items():
        for source in sorted(KERNELS.glob("*.cu")):
            key = f"{target.architecture} {source.stem}"
            if key not in read:
                read[key] = read_kernels(source, target.architecture, nvcc, nvdisasm)
            found, kernels = read[key]
            for name, use in found.items():
                rows.append(_kernel(label, target, name, use, kernels.get(name, []), where, vocab))
    return rows


def _kernel(
    label: str,
    target: Target,
    name: str,
    use: Mapping[str, int],
    blocks: list[Block],
    where: Mapping[str, tuple[str, range]],
    vocab: int,
) -> dict[str, Any]:
    threads = int(320 if name.startswith("transit") else 512)
    at_once = blocks_at_once(target, use, threads)
    found: dict[str, Pass] = {}
    for one in passes(blocks, where):
        found.setdefault(one.name, one)
    doubles = [
        sum(pipe_of(one) == "double" for index in loop.blocks for one in blocks[index].instructions)
        for loop in loops(blocks)
        if _reading_block(blocks, loop) is not None
    ]
    bytes_each = 2 if name.endswith("16") else 4
    ways = {
        way: bound(
            [found[one] for one in names], target, bytes_each=bytes_each, vocab=vocab,
            rows_at_once=at_once * target.multiprocessors,
        )
        for way, names in WAYS.get(name.split("_")[0], {}).items()
        if all(one in found for one in names)
    }  # fmt: skip
    return {
        "target": label,
        "architecture": target.architecture,
        "kernel": name,
        **use,
        "threads": threads,
        "blocks_at_once": at_once,
        "occupancy": round(at_once * threads / target.threads, 3),
        "double_precision_in_loops": sum(doubles),
        "instructions_per_logit": {
            one: {pipe.strip("_"): round(number / PER_TURN, 2) for pipe, number in each.counts.items()}
            for one, each in found.items()
        },
        "ways": ways,
    }


@click.command("kernel-bound", cls=DlmCommand)
@click.option("--nvcc", help="Path of nvcc; else the one on the PATH.")
@click.option("--nvdisasm", help="Path of nvdisasm; else the one on the PATH.")
@click.option("--vocab", default=32000, show_default=True, help="Logits of a row.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The same, to a file.")
def main(
    nvcc: str | None, nvdisasm: str | None, vocab: int, as_json: bool, output: Path | None
) -> None:
    """Bounds each kernel's time from below by counting its machine code; needs no GPU."""
    kernels = count(tool("nvcc", nvcc), tool("nvdisasm", nvdisasm), vocab)
    report = {
        **record(),
        "what": "a lower bound by counting instructions; not a measurement",
        "vocab": vocab,
        "kernels": kernels,
    }
    if output is not None:
        write_json(output, report)
    if as_json:
        click.echo(_json(report))
        return
    lines = [
        {"target": one["target"], "kernel": one["kernel"], "way": way, **found}
        for one in kernels
        for way, found in one["ways"].items()
    ]
    click.echo("Lower bounds by counting, over a copy of the same bytes; not measured:")
    print_table(
        [("target", "target"), ("kernel", "kernel"), ("asked for", "way"), ("passes", "passes"),
         ("limited by", "busiest"), ("over a copy", "over_copy")],
        lines,
    )  # fmt: skip


def _json(report: Mapping[str, Any]) -> str:
    import json

    return json.dumps(report, indent=1)


if __name__ == "__main__":
    main()
