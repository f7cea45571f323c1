"""What `--auto` may choose from: which block sizes and contexts a bundle could ship with, and what
each of them takes of the target's memory.

A graph with a cache ships one block size with its context buckets; a graph without one ships canvas
lengths, of which a text takes the shortest that holds it, so that all of them stay as long as they
fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...jetson.forecast.plan import MemoryPlan, plan_memory
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import GraphSpec
from ...runtime.families.tidar.layout import draft_block
from ...train.families.base import ExportGraph
from ..settings import ExportSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One way to ship."""

    block: int
    """That text is decoded and scored with: the block size, or the longest canvas."""
    rows: int
    """Of the run that a text is decoded by: the block's positions, or drafts and proposals."""
    blocks: tuple[int | str, ...]
    """What the exporter is asked for."""
    contexts: tuple[int, ...]
    """Buckets to choose from, ascending; empty without a cache."""


def offers_of(draft: Bundle, settings: ExportSettings, *, cut: bool = True) -> list[Offer]:
    """Returns every way to ship that the memory decides about, the most capable first per block.

    Blocks are those asked for, else those learnt, as far as text goes on behind them: the whole
    canvas is for infilling, and shapes of twice a block serve that block. Causal models go token by
    token and keep the blocks of their prefill.

    Args:
        draft: With every shape that may be shipped.
        settings: What the user asked for.
        cut: Offer fewer contexts, too; not where the user named them.
    """
    manifest = draft.manifest
    shapes = [(spec.block, spec.context) for spec in manifest.graphs]
    asked = {size for size in settings.blocks if isinstance(size, int)} or manifest.block_sizes
    if not any(context for _, context in shapes):
        lengths = sorted({block for block, _ in shapes})
        return [
            Offer(
                block=lengths[end - 1],
                rows=lengths[end - 1],
                blocks=tuple(lengths[:end]),
                contexts=(),
            )
            for end in range(len(lengths), 0, -1)
        ]
    drafts = _draft_rows(manifest.graphs)
    kept = None
    if drafts:
        blocks = set(drafts)
    elif manifest.model.get("causal"):
        blocks = {min(block for block, _ in shapes)}
        kept = settings.blocks
    else:
        going_on = {block for block, context in shapes if context >= block}
        blocks = going_on.intersection(asked) or {block for block, _ in shapes}
    found = []
    for block in sorted(blocks):
        rows = drafts.get(block, block)
        contexts = sorted(context for size, context in shapes if size == rows)
        for end in range(len(contexts), 0 if cut else len(contexts) - 1, -1):
            found.append(
                Offer(
                    block=block,
                    rows=rows,
                    blocks=(block,) if kept is None else kept,
                    contexts=tuple(contexts[:end]),
                )
            )
    return found


def _draft_rows(specs: Sequence[GraphSpec]) -> dict[int, int]:
    """Rows of the run that drafts so many tokens, by that number; none for other models."""
    found = {}
    for spec in specs:
        block = draft_block(spec.block)
        if block is not None and any(tensor.role == "visible" for tensor in spec.inputs):
            found[block] = spec.block
    return found


def shipped(
    draft: Bundle,
    graphs: Sequence[ExportGraph],
    blocks: Sequence[int | str],
    contexts: Sequence[int],
) -> Bundle:
    """Returns a draft with the shapes alone that an export with these sizes would have."""
    offered = {
        (graph.name, shape.block, shape.context)
        for graph in graphs
        for shape in graph.shapes(blocks, contexts)
    }
    manifest = draft.manifest
    specs = [s for s in manifest.graphs if (s.name, s.block, s.context) in offered]
    return replace(draft, manifest=replace(manifest, graphs=tuple(specs)))


def memory_of(
    draft: Bundle,
    graphs: Sequence[ExportGraph],
    target: str,
    blocks: Sequence[int | str],
    contexts: Sequence[int],
) -> MemoryPlan:
    """Returns what an export with these sizes would take on a target."""
    return plan_memory(shipped(draft, graphs, blocks, contexts), target)
