"""TiDAR on the device: every run verifies the drafts of the one before and drafts again.

| run | rows | afterwards |
|---|---|---|
| prefill | up to B (1 + B) known ids | their kv is stored |
| open | the last known ids, then B masks | their kv is stored; the next token, and drafts |
| verify | B drafts, then B proposals of B masks | kv of the r that are kept; r tokens, drafts |
| head | rows of a run that needs logits | where the head is a graph of its own |

All but the last are the graph `step` at B (1 + B) rows; `layout.py` says what they see. The
token behind the kept drafts is certain as soon as they are verified, so it is shown at once, and
the text is always one token longer than the cache, as it is token by token.

The cache holds the keys and values of known text and of kept drafts only, r rows more per step:
those of other rows are never written, so that nothing is rolled back. A text beyond the largest
context (or the positions the model knows) goes on in a window: the older half is dropped, the rest
prefilled again, and `approximate` is set.

Source: TiDAR (arXiv 2511.08923) sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...bundle.manifest import GraphSpec
from ...engines.base import Engine
from ...ops.drafts import DRAFTS
from ...ops.drafts.contract import DraftSpec, Verified
from ..base import HEAD_PHASE, Buckets, LoadedModel, Request, Span
from ..heads import Heads, hidden_rows
from ..layout import causal_layout
from ..text_rule import TextRule, end_ids, undrawable_ids
from ..window import Text, append, bucket, feed, logits
from .layout import draft_layout, draft_rows, open_layout
from .rules import DraftVerify

GRAPH = "step"
DRAFT = "draft"
"""Purpose of the shapes that draft and verify."""


class Rows(NamedTuple):
    """Rows of a run whose logits are wanted: start, start + stride, …"""

    start: int
    num_rows: int
    stride: int = 1


Verifying = Generator[Rows | None, Any, Verified]
"""What is done with a run's logits: says which rows it wants, is sent them, and so on; None where
it goes on by what a verification found."""


class DraftRule(TextRule):
    """One text being continued by drafts; see the module's documentation."""

    def __init__(
        self,
        model: LoadedModel,
        request: Request,
        settings: DraftVerify,
        *,
        block: int,
        buckets: Buckets,
    ) -> None:
        """Makes the drafts' state; ConfigError if the bundle's head is too small.

        Args:
            model: Drafts and verifies.
            request: What to continue.
            settings: The decoding rule.
            block: B.
            buckets: Shapes that draft so many.
        """
        manifest, ops = model.manifest, model.ops
        assert manifest.mask_token_id is not None
        self._ops, self._request = ops, request
        self._mask, self._filler = manifest.mask_token_id, manifest.eos_token_id
        self._length, self._rows, self._buckets = block, draft_rows(block), buckets
        self._capacity = min(buckets[-1].context, manifest.max_position)
        self._max_position = manifest.max_position
        self._text = Text(request.prompt_ids, len(request.prompt_ids) + request.max_tokens)
        self._num_given = len(request.prompt_ids)
        self._heads = Heads(model.specs)
        self._heads.check(block)
        self._mixed = settings.beta < 1.0
        self._drafting = ops.bind(DRAFTS)
        spec = DraftSpec(
            block=block,
            vocab_size=manifest.vocab_size,
            sampling=settings.sampling,
            seed=request.seed,
            sample_index=request.sample_index,
            mask_token_id=self._mask,
            stops=end_ids(manifest, request),
            banned=undrawable_ids(manifest, request),
            beta=settings.beta,
            held=self._heads.logit_type if self._mixed else None,
        )
        self._drafts = self._drafting.drafts(spec)
        self._layouts = {"prefill": causal_layout(self._rows), "verify": draft_layout(block)}
        self._cached = request.num_cached
        self._kind = ""
        self._count = 0
        self._verifying: Verifying | None = None
        self._output: Any = None
        self._wanted: Rows | None = None
        self._shown_end = 0
        self._done = self._text.num_known >= self._text.limit
        self._plan()

    @property
    def phase(self) -> str:
        """See Phased; the run that opens the drafts is the last of `prefill`."""
        if self._wanted is not None:
            return HEAD_PHASE
        return "verify" if self._kind == "verify" else "prefill"

    @property
    def cached_ids(self) -> np.ndarray:
        return self._text.cached(self._cached)

    def _plan(self) -> None:
        """Decides the next run: known ids into the cache, the first drafts, or a step."""
        if len(self._text.window) > self._capacity:
            self._text.slide(max(1, self._capacity // 2))
            self._approximate = True
            self._cached, self._kind = 0, ""
        pending = len(self._text.window) - self._cached
        if self._kind in ("open", "verify"):
            self._kind, self._count = "verify", self._length
        elif pending <= self._rows - self._length:
            self._kind, self._count = "open", pending
            self._layouts["open"] = open_layout(self._length, pending)
        else:  # one id at least is left to open with
            self._kind, self._count = "prefill", min(self._rows, pending - 1)

    def next_run(self) -> GraphSpec:
        if self._wanted is not None:
            return self._heads.run_of(self._wanted.num_rows)
        # A step that fills the cache stores what there is room for; a window follows it.
        needed = min(self._cached + self._count, self._buckets[-1].context)
        return bucket(self._buckets, needed)

    def feed(self, engine: Engine) -> None:
        ops = self._ops
        if self._wanted is not None:
            self._heads.feed(ops, engine, self._output, *self._wanted)
            return
        layout = self._layouts[self._kind]
        if self._kind == "verify":
            feed(ops, engine, self._drafts.ids, self._drafts.start, layout=layout)
            return
        ids = np.full(self._rows, self._filler, np.int32)
        ids[: self._count] = self._text.window[self._cached : self._cached + self._count]
        if self._kind == "open":
            ids[self._count : self._count + self._length] = self._mask
        feed(ops, engine, ids, self._cached, layout=layout)

    def update(self, engine: Engine) -> None:
        if self._wanted is not None:
            rows = self._ops.rows(logits(engine), 0, self._wanted.num_rows)
            self._wanted = None
            self._go_on(rows)
            return
        if self._kind != "verify":
            append(self._ops, engine, self._cached, self._count)
            self._cached += self._count
        if self._kind == "prefill":
            self._plan()
            return
        self._verifying = self._open() if self._kind == "open" else self._verify(engine)
        self._output = hidden_rows(engine) if self._heads else logits(engine)
        self._go_on(None)

    def read(self) -> Sequence[Span]:
        if self._verifying is None or self._wanted is not None:
            return ()
        found = self._go_on(None, reads=True)
        if found is None:
            return ()
        self._verifying = self._output = None
        return self._take(found)

    def _go_on(self, rows: Any, *, reads: bool = False) -> Verified | None:
        """Goes on with the rows that were wanted until a run is needed, or a verification is to be
        read and `reads` is false; gives what was found at the end."""
        assert self._verifying is not None
        while True:
            try:
                wanted = self._verifying.send(rows)
            except StopIteration as end:
                return end.value
            if wanted is None:
                if not reads:
                    return None
                rows = None
                continue
            if self._heads:
                self._wanted = wanted
                return None
            size = (wanted.num_rows - 1) * wanted.stride + 1
            rows = self._ops.rows(self._output, wanted.start, size)

    def _open(self) -> Verifying:
        """Finds the token behind the last known one, and drafts behind it."""
        last, position = self._count - 1, self._text.offset + self._cached - 1
        self._drafting.begin_drafts(self._drafts, start=self._cached - 1, position=position)
        yield from self._check(Rows(last, 1), Rows(self._count, 1))
        return (yield from self._propose(Rows(self._count, self._length)))

    def _verify(self, engine: Engine) -> Verifying:
        """Keeps drafts, stores their keys and values, and drafts again."""
        block = self._length
        yield from self._check(Rows(0, block), Rows(block, block, block))
        for cache, new in engine.spec.new_rows:
            held = engine.inputs[engine.spec.tensor(cache).name]
            self._drafting.append_kept(held, engine.outputs[new.name], self._drafts)
        if self._heads:
            found = yield from self._verified()
            chosen = Rows(found.num_kept * block, block)
        else:
            chosen = Rows(block, block * block)  # which of them, ops know
        found = yield from self._propose(chosen)
        self._cached += found.num_kept
        return found

    def _check(self, causal: Rows, firsts: Rows) -> Generator[Rows | None, Any, None]:
        """Verifies, by a run's causal rows and, if they count, the proposals' first masks."""
        ops, drafts = self._ops, self._drafts
        rows, first = (yield causal), None
        if self._mixed:
            if self._heads:  # its next run overwrites these rows
                held = ops.rows(drafts.held, 0, causal.num_rows)
                ops.assign(held, rows)
                rows = held
            first = yield firsts
        self._drafting.verify(rows, drafts, first=first, stride=1 if self._heads else firsts.stride)

    def _propose(self, chosen: Rows) -> Verifying:
        """Drafts again, unless a head's run for it would be the text's last."""
        last = bool(self._heads) and self._is_last((yield from self._verified()))
        if self._length > 1 and not last:
            self._drafting.propose((yield chosen), self._drafts)
        return (yield from self._verified())

    def _verified(self) -> Verifying:
        yield None
        return self._drafting.verified(self._drafts)

    def _is_last(self, found: Verified) -> bool:
        return found.ended or self._text.num_known + found.num_kept >= self._text.limit

    def _take(self, found: Verified) -> Sequence[Span]:
        """Adds what became certain to the text, and says so."""
        self._done = self._is_last(found)
        position = self._text.num_known
        ids = np.array(found.ids[: len(found.ids) - found.ended], np.int32)
        new = self._text.extend(position, ids[: self._text.limit - position])
        # A step may end behind the last position that the model knows; a window follows it.
        self._approximate |= len(self._text.window) > self._max_position + 1
        self._ended = found.ended and self._text.num_known < self._text.limit
        spans = [Span(position=position, token_ids=new, committed=True)] if new else []
        if self._request.provisional:
            spans += self._provisional()
        if not self._done:
            self._plan()
        return spans

    def _provisional(self) -> Sequence[Span]:
        """Shows the drafts behind the text; when it is done, that nothing came of the last ones."""
        known, limit = self._text.num_known, self._text.limit
        if self._done:
            ids = (self._mask,) * (self._shown_end - known)
        else:
            ids = self._drafting.draft_ids(self._drafts)[1 : 1 + limit - known]
            self._shown_end = known + len(ids)
        if not ids:
            return ()
        fixed = (not self._done,) * len(ids)
        return (Span(position=known, token_ids=ids, committed=False, fixed=fixed),)
