"""Masked diffusion on the device: block by block with an exact KV cache, or on a whole canvas.

| run | canvas | start | afterwards |
|---|---|---|---|
| store | a full block of the prompt, or a finished one | rows cached | its kv_new is stored |
| denoise | fixed ids, MASK elsewhere | rows cached | a decoding rule commits positions |
| advance | a full block, then the next to denoise | rows cached | as store, then as denoise |

Where rows speak for the next position (`logit_shift` 1), the last row of the run that stored the
block before speaks for a block's first position: it is kept. The run that stores a block then makes
the first token of the next, before all others; with the option `merge` an `advance` run begins the
next block instead, as where rows speak for themselves.

All are the graph `denoise`. A finished block that no other follows is not stored. `advance` saves
a run per block with the same result; it needs the graph at twice the block size, with its input
`split`: else `store` and `denoise` follow each other. Where the ops report one step late, the run
after the last step was one over the finished block already, and its kv_new is stored. The prompt's
tail (its length modulo the block size) shares the first generated block as fixed positions.
Positions beyond the last token asked for stay MASK and are neither committed nor read.

A text beyond the largest context (or the positions the model knows) goes on in a window: the
oldest half is dropped, the kept tail is prefilled at positions from 0 on, `approximate` is set.
Draws are keyed by absolute positions, so that they do not move.

Infilling takes the smallest graph that holds the text as one block at start 0, so that a gap sees
both sides; the setting `block_size` is about continuing a text. An end-of-text token stands fixed
behind the text, unless the text ends with one; what lies behind that stays MASK. Neither that
token, MASK nor padding can fill a gap.

Source: MDLM (arXiv 2406.07524), BD3-LM (arXiv 2503.09573) section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...engines.base import Engine
from ...ops.core import Progress
from ...ops.unmask import UNMASK
from ...ops.unmask.contract import UnmaskCanvas, UnmaskSpec
from ..base import Buckets, LoadedModel, Request, Span
from ..text_rule import CanvasRule, end_ids, undrawable_ids
from ..window import (
    Text,
    append,
    bucket,
    by_block,
    by_rows,
    canvas_block,
    capacity,
    choose_block,
    feed,
    has_input,
    logits,
)
from .rules import Ancestral, MaskedDecoding
from .steps import mask_chances, unmask_chances

GRAPH = "denoise"
MAX_WAITING = 32
"""A late report costs a run at the end of a block, unless that run stores the block: not in the
last block of a text, nor where `advance` stores it for nothing. Waiting for each step's own report
costs one launch's time per step, about 1/30 of a run of a 100 M model on the boards meant. So there
it is awaited in blocks of up to so many masked positions, which are as many steps at most."""


class MaskedRule(CanvasRule[UnmaskCanvas]):
    """One text being denoised block by block; see the module's documentation."""

    def __init__(
        self,
        model: LoadedModel,
        request: Request,
        settings: MaskedDecoding,
    ) -> None:
        """Makes the first canvas; raises ConfigError if the request cannot be served."""
        manifest, engines, ops = model.manifest, model.engines, model.ops
        assert manifest.mask_token_id is not None
        self._mask, self._eos = manifest.mask_token_id, manifest.eos_token_id
        self._engines, self._ops, self._request = engines, ops, request
        shapes = text_blocks(engines.specs)
        template = request.template_ids
        if template is None:
            text = Text(request.prompt_ids, len(request.prompt_ids) + request.max_tokens)
            self._block = text_block(manifest, shapes, settings.block_size, text.limit)
        else:
            self._block = canvas_block(shapes, len(template), manifest.block_sizes)
            text = Text((), len(template))
        self._text = text
        self._num_given = len(request.prompt_ids) if template is None else 0
        self._buckets = shapes[self._block]
        self._shifted = manifest.logit_shift == 1
        merges = not self._shifted or settings.merge == 1
        self._doubles = double_buckets(engines.specs, self._block) if merges else ()
        self._first_alone = not merges and not isinstance(settings, Ancestral)
        self._capacity = capacity(self._buckets, self._block, manifest.max_position)
        self._sees_time = has_input(engines.specs, GRAPH, "time")
        self._times = unmask_chance = None
        if isinstance(settings, Ancestral):
            steps = settings.steps or self._block
            unmask_chance = unmask_chances(manifest, steps)
            self._times = mask_chances(manifest, steps) if self._sees_time else None
        sub_block = None
        if settings.sub_block is not None and template is None:
            sub_block = min(settings.sub_block, self._block)  # the kernel's is an int32
        selection = settings.selection
        assert selection is not None
        self._committing = self._unmask = ops.bind(UNMASK)
        spec = UnmaskSpec(
            block=self._block,
            vocab_size=manifest.vocab_size,
            sampling=settings.sampling,
            selection=selection,
            seed=request.seed,
            sample_index=request.sample_index,
            mask_token_id=self._mask,
            end_ids=end_ids(manifest, request),
            banned=undrawable_ids(manifest, request),
            unmask_chance=unmask_chance,
            sees_time=self._sees_time,
            times=self._times,
            sub_block=sub_block,
            shifted=self._buckets[0].tensor("logits").dtype if self._shifted else None,
            first_alone=self._first_alone,
        )
        self._canvas = self._unmask.canvas(spec)
        # Outputs on which nothing was committed serve again, unless time went on for the graph.
        self._repeats = isinstance(settings, Ancestral) and not self._sees_time
        self._phase = "store"
        self._cached = request.num_cached // self._block * self._block
        self._stepped: tuple[Engine, Any] | None = None
        """The run of a step that is not read yet, and the block's logits."""
        self._open(template)

    def _open(self, template: Sequence[int] | None) -> None:
        """Sets the state before the first run."""
        if template is not None:
            self._unmask.mark_seen(self._canvas, np.array(template, np.int32))
            self._begin_infill(np.array(template, np.int32))
            return
        self._unmask.mark_seen(self._canvas, self._text.ids)
        if self._text.num_known >= self._text.limit:
            self._phase = "done"
        elif self._text.num_known >= self._capacity:
            self._slide()
        else:
            self._advance()

    @property
    def phase(self) -> str:
        """See Phased; to store a block of the prompt is `prefill`, a generated one `commit`."""
        if self._phase != "store":
            return self._phase
        end = self._text.offset + self._cached + self._block
        return "prefill" if end <= self._num_given else "commit"

    @property
    def done(self) -> bool:
        return self._phase == "done"

    @property
    def cached_ids(self) -> np.ndarray:
        return self._text.cached(self._cached)

    def next_run(self) -> GraphSpec:
        match self._phase:
            case "denoise":
                return bucket(self._buckets, self._cached)
            case "store":
                return bucket(self._buckets, self._cached + self._block)
            case _:
                return bucket(self._doubles, self._cached + self._block)

    def feed(self, engine: Engine) -> None:
        block, known = self._block, self._text.window[self._cached :]
        match self._phase:
            case "denoise":
                canvas = self._canvas
                time = canvas.time_input if self._sees_time else 0.0
                feed(self._ops, engine, canvas.ids, self._cached, time=time)
            case "store":
                feed(self._ops, engine, known[:block], self._cached)
            case _:
                ids = np.full(2 * block, self._mask, np.int32)
                ids[: len(known)] = known
                time = np.zeros(2 * block, np.float32)
                time[block:] = self._mask_chance(ids[block:])
                feed(self._ops, engine, ids, self._cached, split=block, time=time)

    def _mask_chance(self, ids: np.ndarray) -> float:
        """The time input of a block that is about to begin: the schedule's chance for `ancestral`,
        else the share that is masked. From then on the primitive writes it (`time_input`)."""
        if self._times is not None:
            return float(self._times[0])
        return float(np.count_nonzero(ids == self._mask) / self._block)

    def update(self, engine: Engine) -> None:
        if self._phase == "denoise":
            self._step(engine, logits(engine))
            return
        append(self._ops, engine, self._cached, self._block)
        self._cached += self._block
        self._keep_row(engine)
        if self._phase == "advance":
            self._begin_block()
            self._step(engine, self._ops.rows(logits(engine), self._block, self._block))
        else:
            self._advance()

    def _keep_row(self, engine: Engine) -> None:
        """Keeps the row of a block just stored that speaks for the next one's first position."""
        if self._shifted:
            row = self._ops.rows(logits(engine), self._block - 1, 1)
            self._ops.assign(self._canvas.before, row)

    def _advance(self) -> None:
        """Goes on behind the cached rows: stores another known block, or denoises the next."""
        num_known = self._text.num_known - self._text.offset - self._cached
        if num_known < self._block:
            self._begin_block()
        elif num_known < 2 * self._block and self._doubles:
            fits = self._doubles[-1].context >= self._cached + self._block
            self._phase = "advance" if fits else "store"
        else:
            self._phase = "store"

    def _slide(self) -> None:
        """Drops the older half of a full window."""
        half = self._capacity // 2
        self._text.slide(half // self._block * self._block if half >= self._block else half)
        self._approximate = True
        self._cached = 0
        self._advance()

    def _begin_block(self) -> None:
        tail = self._text.window[self._cached :]
        position = self._text.offset + self._cached
        index = np.arange(self._block)
        ids = np.full(self._block, self._mask, np.int32)
        ids[: len(tail)] = tail
        masked = (index >= len(tail)) & (position + index < self._text.limit)
        self._unmask.begin_block(self._canvas, ids, masked, position=position, first=len(tail))
        self._phase = "denoise"
        if self._first_alone and masked[0]:
            self._unmask.sample(self._canvas.before, self._canvas)
            self._unmask.commit(self._canvas)

    def _begin_infill(self, template: np.ndarray) -> None:
        ids = np.full(self._block, self._mask, np.int32)
        ids[: len(template)] = template
        masked = ids == self._mask
        masked[len(template) :] = False
        if len(template) < self._block and template[-1] != self._eos:
            ids[len(template)] = self._eos
        left = self._unmask.begin_block(self._canvas, ids, masked, position=0, first=0)
        self._phase = "denoise" if left else "done"
        if not left:
            self._text.extend(0, template)

    def _step(self, engine: Engine, output: Any) -> None:
        """Takes one step on a block's logits."""
        self._unmask.sample(output, self._canvas)
        self._unmask.commit(self._canvas)
        self._stepped = (engine, output)

    def read(self) -> Sequence[Span]:
        """Reads the step, and takes more on the same logits while nothing changes, if they serve
        again."""
        if self._stepped is None:
            return ()
        engine, output = self._stepped
        exact = self._repeats or self._waits()
        progress = self._unmask.progress(self._canvas, exact=exact)
        while self._repeats and progress.num_masked and not progress.num_committed:
            self._step(engine, output)
            progress = self._unmask.progress(self._canvas, exact=exact)
        self._stepped = None
        spans = []
        finished = progress.num_masked == 0
        if finished or self._ops.synchronous:
            spans.extend(self._new_text(progress))
        if self._request.provisional:
            spans.append(self._provisional())
        if finished:
            self._finish_block(progress, engine)
        return spans

    def _waits(self) -> bool:
        """Whether each step's own report is worth waiting for; see MAX_WAITING.

        It is where the run that a late report costs cannot serve as the block's own `store`: none
        follows the last block or one after which the window slides, and `advance` stores a block
        for nothing.
        """
        rows = self._cached + self._block
        last = self._canvas.place.position + self._block >= self._text.limit
        slides = rows >= self._capacity
        doubles = bool(self._doubles) and self._doubles[-1].context >= rows
        few = self._canvas.place.num_masked_at_start <= MAX_WAITING
        return (last or slides or doubles) and few

    def _finish_block(self, progress: Progress, engine: Engine) -> None:
        self._ended = progress.ended
        if progress.ended or self._text.num_known >= self._text.limit:
            self._phase = "done"
        elif self._cached + self._block >= self._capacity:
            self._slide()
        else:
            if progress.behind:
                holder = self._engines.engine(bucket(self._buckets, self._cached + self._block))
                append(self._ops, engine, self._cached, self._block, into=holder)
                self._cached += self._block
                self._keep_row(engine)
            self._advance()


def text_block(
    manifest: Manifest, shapes: Mapping[int, Buckets], asked: int | None, length: int
) -> int:
    """Gives the block that a text of so many positions is continued by: of a model that denoises
    whole canvases only, the shortest canvas that holds it, else the longest."""
    if asked is None and tuple(manifest.block_sizes) == (manifest.max_position,):
        return min((size for size in shapes if size >= length), default=max(shapes))
    return choose_block(shapes, asked, manifest.block_sizes)


def text_blocks(specs: Sequence[GraphSpec]) -> dict[int, Buckets]:
    """Gives the shapes that denoise a block, or a whole canvas, per block size, ascending."""
    return by_block(specs, GRAPH, ("denoise", "fill"))


def double_buckets(specs: Sequence[GraphSpec], block: int) -> Buckets:
    """Gives the shapes that store a block and begin the next; empty where no graph can."""
    if not has_input(specs, GRAPH, "split"):
        return ()
    return by_rows(specs, GRAPH).get(2 * block, ())
