"""Drafting and verifying in NumPy: the reference for kernels, and the CPU path.

Contracts stand in `drafts.DraftOps`. Rows are verified one after the other, so that those behind
the first rejected draft are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..noise.philox import DrawKind, uniforms
from .base import Canvas
from .drafts import Drafts, Verified
from .rows.contract import Sampling
from .rows.host import RowScratch, draw, exponentiate, highest, process, sum_chunks, truncate


class DraftScratch:
    """A text's working memory."""

    def __init__(self, block: int, vocab_size: int, *, drawn: bool, mixed: bool) -> None:
        self.drafted = RowScratch(block, vocab_size) if drawn else None
        """Slot i: weights of the distribution that draft i was drawn from."""
        self.shares = np.zeros(block)
        """(block,) float64: sums of these weights."""
        self.residual = np.zeros(vocab_size, np.float32) if drawn else None
        self.mixed = np.zeros((2, vocab_size), np.float32) if mixed else None
        self.appended = 0
        """Rows in the cache before the last verification."""
        self.found = Verified(0, (), False)
        self.uniforms = uniforms
        """Where draws come from; who compares backends looks at what lies just beside them."""


class NumpyDrafts:
    """The part of `NumpyOps` that drafts."""

    canvas: Callable[..., Canvas]
    """The other part's; see Ops."""

    def drafts(
        self,
        *,
        block: int,
        vocab_size: int,
        sampling: Sampling,
        seed: int,
        sample_index: int,
        mask_token_id: int,
        stops: tuple[int, ...],
        banned: tuple[int, ...],
        beta: float = 1.0,
        held: str | None = None,
    ) -> Drafts:
        """See DraftOps."""
        canvas = self.canvas(
            block=block,
            vocab_size=vocab_size,
            sampling=sampling,
            selection=None,
            seed=seed,
            sample_index=sample_index,
            mask_token_id=mask_token_id,
            eos_token_id=-1,
            banned=banned,
        )
        return Drafts(
            canvas=canvas,
            block=block,
            beta=beta,
            stops=stops,
            ids=np.full((1, block * (1 + block)), mask_token_id, np.int32),
            start=np.zeros(1, np.int32),
            held=None if held is None else np.zeros((1, block, vocab_size), held),
            scratch=DraftScratch(block, vocab_size, drawn=not sampling.greedy, mixed=beta < 1.0),
        )

    def begin_drafts(self, drafts: Drafts, *, start: int, position: int) -> None:
        """See DraftOps."""
        drafts.start[0] = start
        drafts.position = position

    def verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        """See DraftOps."""
        logits = rows.reshape(-1, drafts.canvas.vocab_size)
        masks = None if first is None else first.reshape(-1, drafts.canvas.vocab_size)[::stride]
        chances = _draws(drafts, DrawKind.ACCEPT) if not drafts.canvas.sampling.greedy else None
        count, token = 0, -1
        kept = True
        while kept:
            row = _mix(drafts, logits[count], None if masks is None else masks[count])
            count += 1
            draft = int(drafts.ids[0, count]) if count < len(logits) else None
            if chances is None:
                token = _highest(drafts, row)
                kept = draft == token
            else:
                kept, token = _verify_row(drafts, row, count, draft, chances)
            kept = kept and token not in drafts.stops
        new = (*drafts.ids[0, 1:count].tolist(), token)
        drafts.scratch.found = Verified(count, new, token in drafts.stops)
        drafts.scratch.appended = int(drafts.start[0])
        drafts.ids[0, 0] = token
        drafts.start[0] += count
        drafts.position += count
        drafts.step += 1

    def append_kept(self, kv: Any, kv_new: Any, drafts: Drafts) -> None:
        """See DraftOps."""
        start = drafts.scratch.appended
        count = max(0, min(drafts.scratch.found.num_kept, len(kv) - start))
        kv[start : start + count] = kv_new[:count]

    def propose(self, masks: Any, drafts: Drafts) -> None:
        """See DraftOps."""
        block, scratch = drafts.block, drafts.scratch
        rows = masks.reshape(-1, drafts.canvas.vocab_size)
        if len(rows) != block:
            begin = (scratch.found.num_kept - 1) * block
            rows = rows[begin : begin + block]
        drawn = scratch.drafted
        if drawn is None:
            for index in range(1, block):
                drafts.ids[0, index] = _highest(drafts, rows[index])
            return
        for index in range(1, block):
            scratch.shares[index] = _weigh(drafts, drawn, index, rows[index])
        if block > 1:
            drafts.ids[0, 1:block] = draw(drawn, _draws(drafts, DrawKind.DRAFT), first=1)

    def verified(self, drafts: Drafts) -> Verified:
        """See DraftOps."""
        return drafts.scratch.found

    def draft_ids(self, drafts: Drafts) -> tuple[int, ...]:
        """See DraftOps."""
        return tuple(drafts.ids[0, : drafts.block].tolist())


def _draws(drafts: Drafts, kind: DrawKind) -> np.ndarray:
    """Gives the uniforms of drafts 1..B-1: (B - 1,) float64."""
    canvas = drafts.canvas
    positions = drafts.position + np.arange(1, drafts.block)
    draws = drafts.scratch.uniforms
    return draws(canvas.seed, canvas.sample_index, positions, drafts.step, kind)


def _mix(drafts: Drafts, row: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Gives beta times a causal row and 1 - beta times a mask's: (vocab,)."""
    if drafts.scratch.mixed is None:
        return row
    assert mask is not None, "beta is below 1, and the proposals' first masks are not given"
    mixed, other = drafts.scratch.mixed
    np.multiply(row, np.float32(drafts.beta), out=mixed, dtype=np.float32)
    np.multiply(mask, np.float32(1.0 - drafts.beta), out=other, dtype=np.float32)
    mixed += other
    return mixed


def _process(drafts: Drafts, scratch: RowScratch, row: np.ndarray) -> np.ndarray:
    return process(scratch, row, banned=drafts.canvas.scratch.banned)


def _highest(drafts: Drafts, row: np.ndarray) -> int:
    return highest(_process(drafts, drafts.canvas.scratch.row, row))[0]


def _weigh(drafts: Drafts, scratch: RowScratch, slot: int, row: np.ndarray) -> float:
    """Fills a slot with a row's weights and their chunks' sums; returns their sum."""
    sampling = drafts.canvas.sampling
    _, top = highest(_process(drafts, scratch, row))
    weights = scratch.weights[slot]
    exponentiate(scratch.logits, top, sampling.temperature, weights)
    truncate(weights, sampling.top_k, sampling.top_p)
    return sum_chunks(scratch, slot)


def _verify_row(
    drafts: Drafts, row: np.ndarray, count: int, draft: int | None, chances: np.ndarray
) -> tuple[bool, int]:
    """Whether draft `count` is kept, and the token that stands there: it, or another."""
    scratch, own = drafts.scratch, drafts.canvas.scratch.row
    total = _weigh(drafts, own, 0, row)
    weights = own.weights[0]
    if draft is not None:
        drafted, share = scratch.drafted.weights[count], scratch.shares[count]
        if chances[count - 1] * float(drafted[draft]) * total < float(weights[draft]) * share:
            return True, draft
        residual = scratch.residual
        np.multiply(weights, np.float32(1.0 / total), out=residual)
        np.multiply(drafted, np.float32(1.0 / share), out=own.other)
        residual -= own.other
        if float(residual.max()) > 0.0:
            np.maximum(residual, 0.0, out=weights)
            sum_chunks(own, 0)
    canvas = drafts.canvas
    at = scratch.uniforms(
        canvas.seed, canvas.sample_index, drafts.position + count, drafts.step, DrawKind.TOKEN
    )
    return False, int(draw(own, at.reshape(1))[0])
