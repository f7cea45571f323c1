"""Which static shapes a graph is offered at: a family's choice, given what a user asked for.

Each `ExportGraph` carries a function from the sizes asked for to its shapes, so that exporter and
evaluation know no family. Two kinds are here: a block step over a cache, and a whole canvas without
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...runtime.errors import ConfigError

WHOLE_CANVAS = "full"
"""How options call the block size that is the whole canvas."""
WHOLE_CANVAS_CONTEXT = 8
"""Context rows of a cached graph's whole-canvas shape: none is ever valid, but TensorRT takes no
empty tensor, and eight rows keep its alignment."""
CAUSAL_BLOCK = 1
"""Causal models decode token by token."""
PREFILL_BLOCK = 32
"""Prefill of causal models, which are trained on no block size."""
LONG_PREFILL_BLOCK = 128
"""Prefill of long prompts on CPUs. CPU ms per row of a 135 M model at context 1,024 on AVX2: 5.1 in
blocks of 32, 4.3 in 128 and in 256, 4.8 in 512."""
NO_CACHE = (
    "--context is the room of a key-value cache, which a model of the whole canvas has not: leave "
    "it out, and give the lengths of the canvas with --block"
)
LARGEST_CONTEXT = 2048
"""Positions of the largest context, and of the whole canvas of a model that denoises blocks, unless
others are asked for: public models name up to 262,144 positions, whose cache fits no board."""
CPU_CONTEXTS = (128, 2048)
"""A CPU reads and copies the whole context in every run, so buckets go from the first to the
second in powers of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One static shape of a graph."""

    dims: Mapping[str, int]
    """Size of each dimension that the graph's tensors name."""
    purpose: str
    """What the family runs it for, as in the manifest's GraphSpec."""
    block: int | None = None
    """Text block that it serves; None where a block means nothing."""


def named_shape(rows: int, context: int | None, purpose: str, block: int | None = None) -> Shape:
    """Makes a shape of one text; `context` is None for graphs without a cache."""
    dims = {"batch": 1, "rows": rows}
    if context is not None:
        dims["context"] = context
    return Shape(dims=dims, purpose=purpose, block=block)


def check_sizes(option: str, sizes: Iterable[int], max_position: int) -> None:
    """Raises ConfigError for sizes that are not positions the model was trained for."""
    for size in sizes:
        if not 1 <= size <= max_position:
            raise ConfigError(
                f"{option} {size} must be from 1 to {max_position}, the number of positions "
                "that the checkpoint was trained for"
            )


def cached_shapes(
    blocks: Sequence[int | str],
    contexts: Sequence[int],
    *,
    trained: Sequence[int],
    max_position: int,
) -> tuple[Shape, ...]:
    """Lists the shapes of a bidirectional block step over a cache, smallest first.

    There are twice each block size, too, at which one run stores a finished block and begins the
    next, and the whole canvas, which sees no context. Of a model that was trained on the whole
    canvas alone, the sizes asked for are lengths of the canvas.

    Args:
        blocks: Block sizes asked for, or "full"; empty: those trained on.
        contexts: Context buckets asked for, in positions; empty: half of all, and all, up to
            LARGEST_CONTEXT. The smaller bucket costs nothing on disk and saves 13 % of a run at
            dim 384 x 6 layers.

    Raises:
        ConfigError: A size is not positive, or larger than the model was trained for; contexts of a
            model that has no cache.
    """
    sizes = {size for size in blocks if isinstance(size, int)}
    if not blocks:
        # Blocks that a masked model has not learnt would decode, but badly.
        sizes = {size for size in trained if 1 < size < max_position}
    largest = min(max_position, LARGEST_CONTEXT)
    buckets = set(contexts) or {max(largest // 2, 1), largest}
    check_sizes("--block", sizes, max_position)
    check_sizes("--context", buckets, max_position)
    if tuple(trained) == (max_position,):
        if contexts:
            raise ConfigError(NO_CACHE)
        lengths = sizes | ({max_position} if not sizes or WHOLE_CANVAS in blocks else set())
        return tuple(
            named_shape(length, WHOLE_CANVAS_CONTEXT, "fill", length) for length in sorted(lengths)
        )
    doubles = {2 * size for size in sizes if 2 * size <= max_position} - sizes

    def shape(rows: int, context: int) -> Shape:
        if rows in doubles:
            return named_shape(rows, context, "advance", rows // 2)
        return named_shape(rows, context, "denoise", rows)

    cells = [(rows, context) for context in sorted(buckets) for rows in sorted(sizes | doubles)]
    whole = (max_position, WHOLE_CANVAS_CONTEXT)
    found = [shape(*cell) for cell in cells if cell != whole]
    fills = max_position <= largest or WHOLE_CANVAS in blocks or max_position in trained
    return (*found, *([named_shape(*whole, "fill", max_position)] if fills else []))


def causal_shapes(
    blocks: Sequence[int | str], contexts: Sequence[int], *, max_position: int, on_cpu: bool
) -> tuple[Shape, ...]:
    """Lists the shapes of a causal step over a cache, smallest first: one row, and blocks of rows
    for prompts. A context below two blocks has none, unless it is the largest.

    Args:
        blocks: Rows of prefill asked for; empty: a block, on a CPU a large one, too.
        contexts: Context buckets asked for, in positions; empty: half of all, and all; on a CPU
            powers of two.
        max_position: Positions the checkpoint was trained for.
        on_cpu: Where the shapes will run.

    Raises:
        ConfigError: A size is not positive, or larger than the model was trained for.
    """
    if WHOLE_CANVAS in blocks:
        raise ConfigError(
            f"--block {WHOLE_CANVAS} is the whole canvas of a model that sees both sides; this one "
            "is causal and has none: leave it out"
        )
    sizes = {size for size in blocks if isinstance(size, int)}
    if not sizes:
        sizes = {min(PREFILL_BLOCK, max_position)}
        if on_cpu and max_position >= LONG_PREFILL_BLOCK:
            sizes.add(LONG_PREFILL_BLOCK)
    buckets = set(contexts) or {max(max_position // 2, 1), max_position}
    if on_cpu and not contexts:
        smallest, largest = CPU_CONTEXTS
        size = min(largest, max_position)
        buckets = {size}
        while size > smallest:
            size //= 2
            buckets.add(size)
    check_sizes("--block", sizes, max_position)
    check_sizes("--context", buckets, max_position)
    return tuple(
        named_shape(rows, context, "step" if rows == CAUSAL_BLOCK else "prefill")
        for context in sorted(buckets)
        for rows in sorted({CAUSAL_BLOCK, *sizes})
        if 2 * rows <= context or rows == CAUSAL_BLOCK or context == max(buckets)
    )


def causal_head_shapes(blocks: Sequence[int | str], contexts: Sequence[int]) -> tuple[Shape, ...]:
    """Lists the shapes of a causal step's head: the newest row, and many to read texts with."""
    del blocks, contexts
    return tuple(named_shape(rows, None, "head") for rows in (CAUSAL_BLOCK, PREFILL_BLOCK))


def canvas_shapes(
    blocks: Sequence[int | str],
    contexts: Sequence[int],
    *,
    trained: Sequence[int],
    max_position: int,
) -> tuple[Shape, ...]:
    """Lists the shapes of a graph without a cache: one per canvas length, smallest first.

    Args:
        blocks: Lengths asked for, or "full"; empty: those trained on.
        contexts: Must be empty: nothing is seen but the canvas.

    Raises:
        ConfigError: A length is out of range, or contexts were asked for.
    """
    if contexts:
        raise ConfigError(NO_CACHE)
    lengths = {max_position if size == WHOLE_CANVAS else int(size) for size in blocks or trained}
    check_sizes("--block", lengths, max_position)
    return tuple(named_shape(length, None, "score", length) for length in sorted(lengths))
