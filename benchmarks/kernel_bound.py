"""How fast the kernels can be at best, by counting the instructions that nvcc makes of them.

    python -m dlm_edge.benchmarks.kernel_bound -o kernel-bound.json

**A bound by counting, not a measurement**: it needs nvcc and nvdisasm, and no GPU. Every loop over
the vocabulary is taken from the machine code (`kernel_passes.py`), and of one turn, which reads
eight logits per thread, the instructions are counted by the pipe that executes them. A row takes at
least what its busiest pipe takes, or the memory; the copy that it is held against reads and writes
the same bytes at full bandwidth. What a GPU does besides (waiting for memory, barriers, a last wave
that does not fill it) makes it slower than this: a bound above 1.25 copies says that the goal
cannot be met, one below that it may be.

Scores are by confidence. Of top-k and top-p the sample counts as the share of the row that it
reads, with every weight sorted into a bin; every turn of the pass after it lists weights, as over
flat distributions. A guess that did not hold, which takes two passes more, is not counted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from ..runtime.cli.common import DlmCommand, print_json
from ..runtime.errors import ConfigError
from ..runtime.gpu.compile import OPS
from ..runtime.ops.drafts.device import ROW_WARPS
from ..runtime.ops.transition.device import CudaTransition
from ..runtime.ops.unmask.device import CudaUnmask
from .kernel_passes import (
    PASSES,
    PER_TURN,
    TARGETS,
    WEIGHTS,
    Pass,
    Target,
    named_lines,
    passes,
    pipe_of,
    row_loops,
)
from .report import print_table, record, write_json
from .sass import Block, functions


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
        registers, shared = (
            re.search(r"Used (\d+) registers", part),
            re.search(r"(\d+) bytes smem", part),
        )
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
        options = ["-lineinfo", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", f"-I{OPS}"]
        compiled = _run([nvcc, *options, "-o", str(image), str(source)])
        return resources(compiled.stderr), functions(
            _run([nvdisasm, "-c", "-gi", str(image)]).stdout
        )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").split("\n")[0]
        raise ConfigError(f"{Path(command[0]).name} fails: {reason[:200]}")
    return done


SAMPLED = 1 / 12
"""Share of a row that top-k and top-p read beforehand, where the vocabulary is large."""
WAYS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "sample": {
        "greedy": ("statistics",),
        "drawn": ("statistics", "sum_some_chunks"),
        "top-k or top-p": (
            "statistics", "sort_into_bins, all sorted", "collect, some listed",
            "sum_some_chunks of Floored",
        ),
    },
    "transit": {
        "no offset": ("sum_some_chunks",),
        "offset": ("sum_some_chunks", "sum_some_chunks of Lowered"),
    },
    "propose": {
        "greedy": ("statistics",),
        "drawn": ("heated_statistics", "sum_turns of Drawn"),
    },
    "verify": {
        "greedy": ("statistics",),
        "kept": ("heated_statistics",),
        "rejected": ("heated_statistics", "sum_turns of Residual"),
        "rejected, top-k or top-p": (
            "heated_statistics", "sort_into_bins, all sorted", "collect, some listed",
            "sum_some_chunks of Floored", "sum_turns of Residual of Kept",
        ),
    },
}  # fmt: skip
"""Passes over a row, by kernel and what it is asked for."""
BESIDES = {
    ("propose", "drawn"): 1,
    ("verify", "rejected"): 1,
    ("verify", "rejected, top-k or top-p"): 1,
}
"""Rows of logits that are read or written besides: those a draft came from, kept and looked up."""
ROWS_READ = {"verify_mixed": 2}
"""Rows that a row's figure is taken from, if not one."""


def bound(
    ways: Sequence[Pass],
    target: Target,
    *,
    bytes_each: int,
    vocab: int,
    rows_at_once: int,
    rows_read: int = 1,
    besides: int = 0,
) -> dict[str, Any]:
    """Gives the least time of a kernel that reads rows in some passes, over a copy of them.

    Args:
        ways: The passes.
        target: The GPU, with rows enough for all of it.
        bytes_each: Of a logit.
        vocab: Logits of a row.
        rows_at_once: Rows that are in the second-level cache at once; a row that stays there is
            read from memory once.
        rows_read: Rows that are the input, in the memory and of the copy.
        besides: Rows of the same size that the memory moves besides; the copy does not.
    """
    each = target.multiprocessors * target.clock_hz
    stays = rows_at_once * rows_read * vocab * bytes_each <= target.l2_bytes
    clocks: Counter[str] = Counter()
    shares = [SAMPLED if one.name.startswith("sort_into_bins") else 1.0 for one in ways]
    for one, share in zip(ways, shares, strict=True):
        for pipe, value in one.clocks(target).items():
            clocks[pipe] += share * value
    moved = bytes_each * (rows_read * (1 if stays else sum(shares)) + besides)
    reading = moved / target.bytes_per_second
    busiest = max(clocks, key=lambda pipe: clocks[pipe])
    copy = 2 * bytes_each * rows_read / target.bytes_per_second
    return {
        "clocks_per_logit": {pipe: round(value, 4) for pipe, value in sorted(clocks.items())},
        "busiest": "memory bandwidth" if reading > clocks[busiest] / each else busiest.strip("_"),
        "passes": round(sum(shares), 2),
        "stays_in_l2": stays,
        "over_copy": round(max(reading, clocks[busiest] / each) / copy, 3),
    }


def blocks_at_once(target: Target, found: Mapping[str, int], threads: int) -> int:
    """Gives the thread blocks that a multiprocessor holds at once."""
    registers = -(-found["registers"] // 8) * 8 * threads
    shared = found["shared_bytes"] + 1024
    return min(
        target.threads // threads, target.registers // registers, target.shared_bytes // shared
    )


def count(nvcc: str, nvdisasm: str, vocab: int) -> list[dict[str, Any]]:
    """Counts every kernel of every source for every target."""
    where = named_lines(OPS, (*PASSES, *WEIGHTS))
    read: dict[str, Any] = {}
    rows = []
    for label, target in TARGETS.items():
        for source in sorted(OPS.glob("*/*.cu")):
            key = f"{target.architecture} {source.stem}"
            if key not in read:
                read[key] = read_kernels(source, target.architecture, nvcc, nvdisasm)
            found, kernels = read[key]
            for name, use in found.items():
                rows.append(_kernel(label, target, name, use, kernels.get(name, []), where, vocab))
    return rows


def _threads(kernel: str) -> int:
    """Threads of a block, as the primitives launch them over a large vocabulary."""
    way, kind = kernel.split("_")[0], kernel.rsplit("_", 1)[-1]
    if way in ("verify", "propose"):
        return 32 * ROW_WARPS
    forms = {"sample": CudaUnmask, "transit": CudaTransition}
    return 32 * (forms[way].row_warps[kind == "float16"] if way in forms else 16)


def _kernel(
    label: str,
    target: Target,
    name: str,
    use: Mapping[str, int],
    blocks: list[Block],
    where: Mapping[str, tuple[str, range]],
    vocab: int,
) -> dict[str, Any]:
    threads = _threads(name)
    at_once = blocks_at_once(target, use, threads)
    bytes_each = 2 if name.endswith("16") else 4
    found: dict[str, Pass] = {}
    for one in passes(blocks, where):
        found.setdefault(one.name, one)
    doubles = [
        sum(pipe_of(one) == "double" for index in loop.blocks for one in blocks[index].instructions)
        for loop, _ in row_loops(blocks)
    ]
    kind = name.split("_")[0]
    lost = {one for names in WAYS.get(kind, {}).values() for one in names} - found.keys()
    if lost:
        raise ConfigError(
            f"the code of {name} has no loop like {min(lost)!r}: kernel_passes.py has to follow it"
        )
    ways = {
        way: bound(
            [found[one] for one in names], target, bytes_each=bytes_each, vocab=vocab,
            rows_at_once=at_once * target.multiprocessors,
            rows_read=ROWS_READ.get(name.rsplit("_", 1)[0], 1),
            besides=BESIDES.get((kind, way), 0),
        )
        for way, names in WAYS.get(kind, {}).items()
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
            one: {
                pipe.strip("_"): round(number / PER_TURN, 2) for pipe, number in each.counts.items()
            }
            for one, each in found.items()
        },
        "ways": ways,
    }


@click.command("kernel-bound", cls=DlmCommand)
@click.option("--nvcc", help="Path of nvcc; else the one on the PATH.")
@click.option("--nvdisasm", help="Path of nvdisasm; else the one on the PATH.")
@click.option("--vocab", default=32000, help="Logits of a row.")
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
        print_json(report)
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


if __name__ == "__main__":
    main()
