"""Which graph shapes serve a text, and where in the KV cache the text is.

Shared by the families that cache a prefix. Knows no decoding rule and no logits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle.manifest import GraphSpec, Manifest
from ..engines.base import Engine
from ..errors import ConfigError
from ..noise.philox import check_key
from ..ops.core import Ops
from .base import Buckets, Request
from .layout import Layout, causal_layout


def by_rows(specs: Sequence[GraphSpec], graph: str) -> dict[int, Buckets]:
    """Gives a graph's shapes for one text per number of rows, ascending; ConfigError for none."""
    found: dict[int, list[GraphSpec]] = {}
    for spec in sorted(specs, key=lambda item: (item.rows, item.context)):
        if spec.name == graph and spec.batch == 1:
            found.setdefault(spec.rows, []).append(spec)
    if not found:
        raise ConfigError(f"the bundle has no graph {graph!r}; export it again")
    return {rows: tuple(buckets) for rows, buckets in found.items()}


def by_block(
    specs: Sequence[GraphSpec], graph: str, purposes: Collection[str]
) -> dict[int, Buckets]:
    """Gives a graph's shapes for one text with one of these purposes per text block, ascending."""
    found: dict[int, list[GraphSpec]] = {}
    for spec in sorted(specs, key=lambda item: (item.block or 0, item.context)):
        fits = spec.name == graph and spec.batch == 1 and spec.purpose in purposes
        if fits and spec.block is not None:
            found.setdefault(spec.block, []).append(spec)
    if not found:
        raise ConfigError(
            f"the bundle has no graph {graph!r} to {' or '.join(purposes)} a block; export it again"
        )
    return {block: tuple(buckets) for block, buckets in found.items()}


def default_block(manifest: Manifest) -> int | None:
    """Gives the block size that the bundle decodes by, if it names one."""
    return manifest.decoding.get("block_size")


def choose_block(
    shapes: Mapping[int, Buckets], asked: int | None, learnt: Sequence[int] = ()
) -> int:
    """Gives the block size to decode with: the one asked for, else the default.

    The default, where the bundle names none, is the largest that a text can be continued with (its
    largest context holds at least one block), among the sizes that the model has learnt if any of
    them can; without any, the largest, which is the whole canvas.
    """
    if asked is None:
        fitting = [block for block, buckets in shapes.items() if buckets[-1].context >= block]
        return max(set(fitting).intersection(learnt) or fitting, default=max(shapes))
    if asked not in shapes:
        sizes = ", ".join(map(str, shapes))
        raise ConfigError(f"the bundle has no graph of block size {asked}; choose from {sizes}")
    return asked


def canvas_block(shapes: Mapping[int, Buckets], length: int, learnt: Sequence[int] = ()) -> int:
    """Gives the smallest block that holds a whole text, if possible one that the model has learnt;
    raises ConfigError if none does."""
    fitting = [block for block in shapes if block >= length]
    fitting = [block for block in fitting if block in learnt] or fitting
    if not fitting:
        raise ConfigError(
            f"the text to fill has {length} tokens, the largest canvas {max(shapes)}; "
            "shorten it, or export with a larger whole-canvas block"
        )
    return min(fitting)


def capacity(buckets: Buckets, block: int, max_position: int) -> int:
    """Gives how many positions a window has: the blocks that fit the cache, and one more."""
    blocks_cached = min(buckets[-1].context // block, max(0, max_position // block - 1))
    return (blocks_cached + 1) * block


def bucket(buckets: Buckets, committed: int) -> GraphSpec:
    """Gives the smallest shape whose context holds so many positions; ConfigError if none does."""
    for spec in buckets:
        if spec.context >= committed:
            return spec
    raise ConfigError(
        f"the text needs a context of {committed} positions, the bundle has "
        f"{buckets[-1].context} at most for this block size; take shorter windows, or export a "
        "larger context"
    )


def bucket_of_text(buckets: Buckets, committed: int) -> tuple[GraphSpec, bool]:
    """Gives the shape that goes on behind so many positions of a text of any length, and whether
    its window has slid by then."""
    longest = buckets[-1]
    slid = longest.context < committed
    return (longest if slid else bucket(buckets, committed)), slid


def check_ids(manifest: Manifest, ids: Sequence[int], what: str, *, mask: bool = False) -> None:
    """Raises ConfigError for ids that a text cannot hold; `mask` admits the mask id."""
    if not ids:
        raise ConfigError(f"the {what} is empty; it begins with at least the start token")
    for token in ids:
        if not 0 <= token < manifest.vocab_size:
            raise ConfigError(
                f"the {what} holds token {token}, outside the vocabulary of {manifest.vocab_size}"
            )
    banned = set(banned_ids(manifest))
    if mask and manifest.mask_token_id is not None:
        banned.discard(manifest.mask_token_id)
    wrong = banned.intersection(ids)
    if wrong:
        raise ConfigError(
            f"the {what} holds token {min(wrong)}, which is mask or padding, not text"
        )


def check_request(manifest: Manifest, request: Request) -> None:
    """Raises ConfigError for a seed, a text or a length that no family can serve."""
    check_key(request.seed, request.sample_index)
    if request.template_ids is not None:
        check_ids(manifest, request.template_ids, "text to fill", mask=True)
        return
    check_ids(manifest, request.prompt_ids, "prompt")
    if request.max_tokens < 0:
        raise ConfigError(f"max_tokens must be at least 0, not {request.max_tokens}")


def banned_ids(manifest: Manifest) -> tuple[int, ...]:
    """Gives the ids that no text contains: mask and padding."""
    special = {manifest.mask_token_id, manifest.pad_token_id} - {None, manifest.eos_token_id}
    return tuple(sorted(token for token in special if token is not None))


class Text:
    """The committed ids of one text, and the window of it that the model sees."""

    def __init__(self, given: Sequence[int], limit: int) -> None:
        """Starts with the given ids; `limit` ids at most will stand here."""
        self._ids = np.zeros(max(limit, len(given)), np.int32)
        self._ids[: len(given)] = given
        self.limit = limit
        """Positions at most, the given ones included."""
        self.num_known = len(given)
        self.offset = 0
        """Absolute position of the window's first token."""

    @property
    def ids(self) -> np.ndarray:
        """(num_known,) int32 view."""
        return self._ids[: self.num_known]

    @property
    def window(self) -> np.ndarray:
        """Known ids from the window's start on: int32 view."""
        return self._ids[self.offset : self.num_known]

    def extend(self, position: int, ids: np.ndarray) -> tuple[int, ...]:
        """Writes ids at an absolute position; returns those beyond what was known."""
        end = position + len(ids)
        new = tuple(int(token) for token in ids[self.num_known - position :]) if len(ids) else ()
        if end > self.num_known:
            self._ids[position:end] = ids
            self.num_known = end
            return new
        return ()

    def cached(self, num_rows: int) -> np.ndarray:
        """Gives the ids from the text's start on that a cache of so many rows of the window holds:
        none once the window has moved."""
        return self.ids[:num_rows] if self.offset == 0 else self.ids[:0]

    def slide(self, keep: int) -> None:
        """Moves the window so that it begins `keep` known ids before the end."""
        self.offset = self.num_known - keep


def has_input(specs: Sequence[GraphSpec], graph: str, role: str) -> bool:
    """Tells whether a graph has an input of a role that not all have, such as `time`."""
    return any(
        tensor.role == role for spec in specs if spec.name == graph for tensor in spec.inputs
    )


def feed(
    ops: Ops,
    engine: Engine,
    ids: object,
    start: Any,
    *,
    split: int = 0,
    time: Any = 0.0,
    layout: Layout | None = None,
) -> None:
    """Writes a canvas and its position into an engine's buffers.

    Args:
        ops: Copies to where the engine runs.
        engine: Whose inputs are written.
        ids: (block,) canvas.
        start: Position of its first token; a number, or an array of the ops.
        split: Positions before it see none from it on; for graphs that have this input.
        time: The share of masks, (block,) of the host or of the ops, or one for all; for graphs
            that see it.
        layout: Where rows are and what they see, for graphs that read it; None: one after the
            other, each seeing those before it.
    """
    values = {"split": split, "start": start, "time": time, "canvas": ids}
    if any(tensor.role == "visible" for tensor in engine.spec.inputs):
        layout = layout or causal_layout(engine.spec.rows)
        values |= {"offsets": layout.offsets, "visible": layout.visible}
    held = []
    for tensor in engine.spec.inputs:
        if tensor.role not in values:
            continue
        value = values[tensor.role]
        if isinstance(value, int | float):
            value = np.full(tensor.shape, value, tensor.dtype)
        if isinstance(value, np.ndarray) and tensor.role != "canvas":
            ops.assign(engine.inputs[tensor.name], value)
        else:
            held.append((engine.inputs[tensor.name], value))
    # Last, so that what a device holds itself is part of what repeats from step to step.
    for target, value in held:
        ops.assign(target, value)


def append(ops: Ops, engine: Engine, start: int, count: int, *, into: Engine | None = None) -> None:
    """Stores a run's first `count` keys and values behind `start` rows of each cache.

    `into` is an engine of the set whose context holds them, if the one that ran is too short.
    """
    holder = into or engine
    held = {tensor.role: holder.inputs[tensor.name] for tensor in holder.spec.inputs}
    for cache, new in engine.spec.new_rows:
        ops.append_kv(held[cache], engine.outputs[new.name], start, count)


def logits(engine: Engine) -> object:
    """Gives a run's logits: (1, block, vocab)."""
    return engine.outputs[engine.spec.tensor("logits").name]
