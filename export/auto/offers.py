"""What `--auto` may choose from: which block sizes and contexts a bundle could ship with, and what
each of them takes of the target's memory.

A graph with a cache ships one block size with its context buckets; a graph without one ships canvas
lengths, of which a text takes the shortest that holds it, so that all of them stay as long as they
fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...jetson.forecast.forecast import forecast_memory
from ...jetson.forecast.memory import MemoryForecast
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import graph_key
from ...runtime.families.table import find_family
from ...train.families.base import ExportGraph
from ..settings import ExportSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One way to ship."""

    block: int | None
    """That text is decoded and scored with: the block size, or the longest canvas; None where text
    goes token by token."""
    blocks: tuple[int | str, ...]
    """What the exporter is asked for."""
    contexts: tuple[int, ...]
    """Buckets to choose from, ascending; empty without a cache."""


def offers_of(draft: Bundle, settings: ExportSettings, *, cut: bool = True) -> list[Offer]:
    """Returns every way to ship that the memory decides about, the most capable first per block.

    Blocks are those asked for, else those learnt, as far as text goes on behind them: the whole
    canvas is for infilling. Models that go token by token keep the shapes asked for.

    Args:
        draft: With every shape that may be shipped.
        cut: Offer fewer contexts, too; not where the user named them.
    """
    manifest = draft.manifest
    shapes = find_family(manifest.family).blocks(manifest, manifest.graphs)
    if not any(spec.context for spec in manifest.graphs):
        lengths = sorted(shapes)
        return [
            Offer(block=lengths[end - 1], blocks=tuple(lengths[:end]), contexts=())
            for end in range(len(lengths), 0, -1)
        ]
    asked = {size for size in settings.blocks if isinstance(size, int)} or manifest.block_sizes
    going_on = {block for block, found in shapes.items() if found[-1].context >= block}
    found = []
    for block in sorted(going_on.intersection(asked) or shapes) or [None]:
        specs = manifest.graphs if block is None else shapes[block]
        contexts = sorted({spec.context for spec in specs if spec.context})
        for end in range(len(contexts), 0 if cut else len(contexts) - 1, -1):
            found.append(
                Offer(
                    block=block,
                    blocks=settings.blocks if block is None else (block,),
                    contexts=tuple(contexts[:end]),
                )
            )
    return found


def shipped(
    draft: Bundle,
    graphs: Sequence[ExportGraph],
    blocks: Sequence[int | str],
    contexts: Sequence[int],
) -> Bundle:
    """Returns a draft with the shapes alone that an export with these sizes would have."""
    offered = {
        graph_key(graph.name, shape.dims)
        for graph in graphs
        for shape in graph.shapes(blocks, contexts)
    }
    manifest = draft.manifest
    specs = [spec for spec in manifest.graphs if spec.key in offered]
    return replace(draft, manifest=replace(manifest, graphs=tuple(specs)))


def memory_of(
    draft: Bundle,
    graphs: Sequence[ExportGraph],
    target: str,
    blocks: Sequence[int | str],
    contexts: Sequence[int],
) -> MemoryForecast:
    """Returns what an export with these sizes would take on a target."""
    return forecast_memory(shipped(draft, graphs, blocks, contexts), target)
