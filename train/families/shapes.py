"""Which static shapes a graph is offered at: a family's choice, given what a user asked for.

Each `ExportGraph` carries a function from the sizes asked for to its shapes, so that exporter and
evaluation know no family. The two kinds there are so far stand here: a block step over a cache,
and a whole canvas that has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...runtime.errors import ConfigError
from ...runtime.families.tidar.layout import draft_rows

WHOLE_CANVAS = "full"
"""How options call the block size that is the whole canvas."""
WHOLE_CANVAS_CONTEXT = 8
"""Context rows of a cached graph's whole-canvas shape: none is ever valid, but TensorRT takes no
empty tensor, and eight rows keep its alignment."""
CAUSAL_BLOCK = 1
"""Causal models decode token by token."""
PREFILL_BLOCK = 32
"""Prefill of causal models, which are trained on no block size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One static shape of a graph."""

    block: int
    context: int
    """0 for graphs without a cache."""
    double: bool = False
    """Twice a block size: one run stores a finished block and begins the next."""


def default_block(shapes: Iterable[Shape]) -> int | None:
    """Gives the block size that decoding takes where doubles hide which ones were asked for: the
    largest that a text can be continued with. None without doubles, or if no text can."""
    listed = tuple(shapes)
    own = [shape.block for shape in listed if not shape.double and shape.context >= shape.block]
    return max(own, default=None) if any(shape.double for shape in listed) else None


def _check(option: str, sizes: Iterable[int], max_position: int) -> None:
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
    causal: bool,
) -> tuple[Shape, ...]:
    """Lists the shapes of a block step over a cache, smallest first.

    Args:
        blocks: Block sizes asked for, or "full"; empty: those trained on.
        contexts: Context buckets asked for, in positions; empty: half of all, and all. The smaller
            bucket costs nothing on disk and saves 13 % of a run at dim 384 x 6 layers.
        trained: Block sizes the checkpoint was trained on.
        max_position: Positions it was trained for.
        causal: Adds the shape for one token at a time. Others get twice each block size, at which
            one run stores a finished block and begins the next, and the whole canvas, which sees no
            context.

    Raises:
        ConfigError: A size is not positive, or larger than the model was trained for.
    """
    if causal and WHOLE_CANVAS in blocks:
        raise ConfigError(
            f"--block {WHOLE_CANVAS} is the whole canvas of a model that sees both sides; this one "
            "is causal and has none: leave it out"
        )
    sizes = {size for size in blocks if isinstance(size, int)}
    if not blocks:
        # Blocks that a masked model has not learnt would decode, but badly.
        untrained = {min(PREFILL_BLOCK, max_position)} if causal else set()
        sizes = {size for size in trained if 1 < size < max_position} or untrained
    rows = set(contexts) or {max(max_position // 2, 1), max_position}
    _check("--block", sizes, max_position)
    _check("--context", rows, max_position)
    sizes |= {CAUSAL_BLOCK} if causal else set()
    doubles = set() if causal else {2 * size for size in sizes if 2 * size <= max_position} - sizes
    shapes = {
        (block, context): Shape(block=block, context=context, double=block in doubles)
        for context in sorted(rows)
        for block in sorted(sizes | doubles)
    }
    if not causal:
        whole = Shape(block=max_position, context=WHOLE_CANVAS_CONTEXT)
        shapes.pop((max_position, WHOLE_CANVAS_CONTEXT), None)
        shapes[max_position, WHOLE_CANVAS_CONTEXT] = whole
    return tuple(shapes.values())


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
        trained: Lengths the checkpoint was trained on.
        max_position: The largest of them.

    Raises:
        ConfigError: A length is out of range, or contexts were asked for.
    """
    if contexts:
        raise ConfigError(
            "--context is the room of a key-value cache, which this family has not: leave it out, "
            "and give the lengths of the canvas with --block"
        )
    lengths = {max_position if size == WHOLE_CANVAS else int(size) for size in blocks or trained}
    _check("--block", lengths, max_position)
    return tuple(Shape(block=length, context=0) for length in sorted(lengths))


def draft_blocks(
    blocks: Sequence[int | str], *, trained: Sequence[int], max_position: int
) -> tuple[int, ...]:
    """Gives the draft lengths on offer: those asked for, else those trained on that fit.

    Raises:
        ConfigError: A run of that many drafts and their proposals has more rows than the model has
            positions.
    """
    if WHOLE_CANVAS in blocks:
        raise ConfigError(
            f"--block {WHOLE_CANVAS} is the whole canvas of a model that sees both sides; here it "
            "is the number of tokens drafted at a time: give 4, 8 or 12"
        )
    fitting = tuple(size for size in trained if draft_rows(size) <= max_position)
    sizes = {size for size in blocks if isinstance(size, int)} or set(fitting)
    _check("--block", sizes, max_position)
    for size in sorted(sizes):
        if draft_rows(size) > max_position:
            raise ConfigError(
                f"--block {size} makes runs of {draft_rows(size)} rows, more than the "
                f"{max_position} positions that the checkpoint was trained for; draft fewer tokens"
            )
    if not sizes:
        raise ConfigError(
            f"none of the draft lengths that the checkpoint was trained on fits its {max_position} "
            "positions: name a smaller --block"
        )
    return tuple(sorted(sizes))


def draft_shapes(
    blocks: Sequence[int | str],
    contexts: Sequence[int],
    *,
    trained: Sequence[int],
    max_position: int,
) -> tuple[Shape, ...]:
    """Lists the shapes of a draft-and-verify step, smallest first: B (1 + B) rows for each draft
    length B, and one row for token by token.

    Args:
        blocks: Draft lengths asked for; empty: those trained on.
        contexts: As `cached_shapes` takes them.
        trained: Draft lengths the checkpoint was trained on.
        max_position: Positions it was trained for.

    Raises:
        ConfigError: A size is out of range.
    """
    sizes = draft_blocks(blocks, trained=trained, max_position=max_position)
    rows = set(contexts) or {max(max_position // 2, 1), max_position}
    _check("--context", rows, max_position)
    counts = sorted({CAUSAL_BLOCK, *(draft_rows(size) for size in sizes)})
    return tuple(Shape(block=count, context=size) for size in sorted(rows) for count in counts)


def head_shapes(
    blocks: Sequence[int | str],
    contexts: Sequence[int],
    *,
    trained: Sequence[int],
    max_position: int,
) -> tuple[Shape, ...]:
    """Lists the shapes of the head of such a step: one row, and as many as are drafted."""
    del contexts  # a head sees none
    sizes = draft_blocks(blocks, trained=trained, max_position=max_position)
    return tuple(Shape(block=size, context=0) for size in sorted({CAUSAL_BLOCK, *sizes}))
