"""Causal decoding: one token per run, with a KV cache. Families `ar` and `tidar` share it.

| run | canvas | afterwards |
|---|---|---|
| prefill | up to a block of known ids, filler behind them | kv of the known ones is stored |
| decode | the newest token (block 1) | its kv is stored, its logits give the next token |

Both are one graph, causal inside the block, so that known ids do not see the filler behind them.
Where the head is a graph of its own, a run of it follows each run that makes a token. Row i's
logits predict token i + 1. A text beyond the largest context (or the positions the model knows)
goes on in a window: the older half is dropped, the rest prefilled again, and `approximate` is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle.manifest import GraphSpec, Manifest
from ..engines.base import Engine
from ..errors import ConfigError
from ..ops.unmask import UNMASK
from ..ops.unmask.contract import UnmaskSpec
from .base import HEAD_PHASE, Buckets, LoadedModel, Request, Span, WindowSize
from .heads import Heads, hidden_rows
from .likelihood import negative_log_likelihood
from .next_token import NextToken
from .text_rule import TextRule, end_ids, undrawable_ids
from .window import (
    Text,
    append,
    banned_ids,
    bucket,
    bucket_of_text,
    by_rows,
    check_request,
    choose_block,
    feed,
    logits,
)

GRAPH = "denoise"
_NO_MASK = -1
RUN_COST = 32
"""What a run is assumed to cost beside its rows, in rows. A prompt takes the block whose runs cost
least together."""


class CausalRule(TextRule):
    """One text being continued token by token."""

    def __init__(
        self,
        model: LoadedModel,
        request: Request,
        settings: NextToken,
        *,
        graph: str = GRAPH,
    ) -> None:
        """Makes the first canvas; raises ConfigError if the request cannot be served."""
        manifest, ops = model.manifest, model.ops
        self._ops, self._request = ops, request
        self._heads = Heads(model.specs)
        self._hidden: Any = None
        """What the head goes on with, if it runs next: rows of a trunk's output."""
        self._drawn = False
        """Whether the last update drew a token."""
        self._filler = manifest.eos_token_id
        self._text = Text(request.prompt_ids, len(request.prompt_ids) + request.max_tokens)
        self._num_given = len(request.prompt_ids)
        self._shapes = cached_shapes(model.specs, graph)
        self._capacity = causal_capacity(self._shapes, manifest)
        selection = settings.selection
        assert selection is not None
        self._unmask = ops.bind(UNMASK)
        spec = UnmaskSpec(
            block=1,
            vocab_size=manifest.vocab_size,
            sampling=settings.sampling,
            selection=selection,
            seed=request.seed,
            sample_index=request.sample_index,
            mask_token_id=_NO_MASK,
            end_ids=end_ids(manifest, request),
            banned=undrawable_ids(manifest, request),
        )
        self._canvas = self._unmask.canvas(spec)
        self._unmask.mark_seen(self._canvas, self._text.ids)
        self._cached = request.num_cached
        self._count = 0
        self._rows = 1
        self._done = self._text.num_known >= self._text.limit
        self._plan()

    @property
    def phase(self) -> str:
        """See Phased; the run over the prompt's last tokens also makes the first new one."""
        if self._hidden is not None:
            return HEAD_PHASE
        return "prefill" if self._cached < self.num_given else "denoise"

    @property
    def cached_ids(self) -> np.ndarray:
        return self._text.cached(self._cached)

    def _plan(self) -> None:
        """Decides the next run: how many known ids go in, and over how many rows."""
        if len(self._text.window) > self._capacity:
            self._text.slide(max(1, self._capacity // 2))
            self._approximate = True
            self._cached = 0
        pending = len(self._text.window) - self._cached
        self._rows = min(self._shapes, key=lambda rows: -(-pending // rows) * (rows + RUN_COST))
        self._count = min(pending, self._rows)

    def next_run(self) -> GraphSpec:
        if self._hidden is not None:
            return self._heads.run_of(1)
        return bucket(self._shapes[self._rows], self._cached + self._count)

    def feed(self, engine: Engine) -> None:
        if self._hidden is not None:
            self._heads.feed(self._ops, engine, self._hidden, self._count - 1, 1)
            return
        ids = np.full(self._rows, self._filler, np.int32)
        ids[: self._count] = self._text.window[self._cached : self._cached + self._count]
        feed(self._ops, engine, ids, self._cached)

    def update(self, engine: Engine) -> None:
        row = 0
        if self._hidden is None:
            append(self._ops, engine, self._cached, self._count)
            self._cached += self._count
            row = self._count - 1
            if self._cached < len(self._text.window):
                self._plan()
                return
            if self._heads:
                self._hidden = hidden_rows(engine)
                return
        self._hidden = None
        self._unmask.begin_block(
            self._canvas,
            np.array([_NO_MASK], np.int32),
            np.ones(1, bool),
            position=self._text.num_known,
            first=0,
        )
        self._unmask.sample(self._ops.rows(logits(engine), row, 1), self._canvas)
        self._unmask.commit(self._canvas)
        self._drawn = True

    def read(self) -> Sequence[Span]:
        if not self._drawn:
            return ()
        self._drawn = False
        progress = self._unmask.progress(self._canvas, exact=True)  # the next run needs the token
        ids = self._unmask.ids(self._canvas)
        self._ended = progress.ended
        if self._ended:
            self._done = True
            return ()
        position = self._text.num_known
        new = self._text.extend(position, ids)
        self._done = self._text.num_known >= self._text.limit
        if not self._done:
            self._plan()
        return (Span(position=position, token_ids=new, committed=True),)


def cached_shapes(specs: Sequence[GraphSpec], graph: str = GRAPH) -> dict[int, Buckets]:
    """Gives the shapes whose context holds all of their rows: the others can store nothing."""
    shapes = by_rows(specs, graph)
    fitting = {rows: buckets for rows, buckets in shapes.items() if buckets[-1].context >= rows}
    if not fitting:
        raise ConfigError(
            "no graph of the bundle has a context as long as its rows; export it again"
        )
    return fitting


def check_causal_request(manifest: Manifest, request: Request) -> None:
    """Raises ConfigError for a request that no model that writes from left to right can serve."""
    if request.template_ids is not None:
        raise ConfigError("a causal model cannot fill gaps; use a bundle of another family")
    check_request(manifest, request)


def causal_likelihood(
    model: LoadedModel,
    windows: Sequence[np.ndarray],
    *,
    samples: range,
    graph: str = GRAPH,
) -> Iterator[np.ndarray]:
    """Yields, per window, its exact likelihood: (len(samples), L) float64 nats, equal rows."""
    manifest, engines, ops = model.manifest, model.engines, model.ops
    shapes, heads = cached_shapes(model.specs, graph), Heads(model.specs)
    for window in windows:
        block = min((rows for rows in shapes if rows >= len(window)), default=max(shapes))
        nats = np.zeros(len(window))
        for start in range(0, len(window), block):
            piece = window[start : start + block]
            ids = np.full(block, manifest.eos_token_id, np.int32)
            ids[: len(piece)] = piece
            last = start + block >= len(window)
            rows = start if last else start + block
            engine = engines.engine(bucket(shapes[block], rows))
            feed(ops, engine, ids, start)
            engine.run()
            if not last:
                append(ops, engine, start, block)
            targets = window[start + 1 : start + 1 + len(piece)]
            done = start + 1
            for found in heads.all_rows(engines, ops, engine, len(targets)):
                own = window[done : done + len(found)]
                nats[done : done + len(found)] = negative_log_likelihood(
                    found, own, banned_ids(manifest)
                )
                done += len(found)
        yield np.repeat(nats[None], len(samples), axis=0)


def causal_runs(
    specs: Sequence[GraphSpec], positions: int, tokens_per_run: float, graph: str = GRAPH
) -> Iterator[tuple[GraphSpec, float]]:
    """Yields the runs of a text that goes token by token; see DeviceFamily.runs.

    Behind the largest context the window slides by half of it, which is then read again.
    """
    shapes, heads = cached_shapes(specs, graph), Heads(specs)
    one, longest = shapes[min(shapes)], shapes[max(shapes)][-1]
    for start in range(positions):
        spec, slid = bucket_of_text(one, start + 1)
        yield spec, 1 / tokens_per_run
        if heads:
            yield heads.run_of(1), 1 / tokens_per_run
        if slid:
            yield longest, 1 / longest.rows


def causal_windows(
    manifest: Manifest, specs: Sequence[GraphSpec], asked: int | None, graph: str = GRAPH
) -> WindowSize:
    """Gives the size of windows: by single tokens, unless rows of a run are asked for."""
    shapes = by_rows(specs, graph)
    rows = choose_block(shapes, asked or min(shapes))
    room = shapes[rows][-1].context // rows * rows + rows
    return WindowSize(rows, min(manifest.max_position, room))


def causal_capacity(shapes: Mapping[int, Buckets], manifest: Manifest) -> int:
    """Gives how many known ids a window holds, which the largest cache of every shape must."""
    return min(min(buckets[-1].context for buckets in shapes.values()), manifest.max_position)
