"""Drafting and verifying in NumPy: the reference for kernels, and the CPU path.

Rows are verified one after the other, so that those behind
the first rejected draft are never read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...noise.philox import DrawKind, uniforms
from ..rows.host import RowScratch, draw, exponentiate, highest, process, sum_chunks, truncate
from .contract import DraftOps, Drafts, DraftSpec, Verified


class DraftScratch:
    """A text's working memory."""

    def __init__(self, spec: DraftSpec) -> None:
        block, vocab_size, drawn = spec.block, spec.vocab_size, not spec.sampling.greedy
        self.row = RowScratch(1, vocab_size)
        self.banned = np.array(spec.banned, dtype=np.int64)
        self.drafted = RowScratch(block, vocab_size) if drawn else None
        """Slot i: weights of the distribution that draft i was drawn from."""
        self.shares = np.zeros(block)
        """(block,) float64: sums of these weights."""
        self.residual = np.zeros(vocab_size, np.float32) if drawn else None
        self.mixed = np.zeros((2, vocab_size), np.float32) if spec.beta < 1.0 else None
        self.appended = 0
        """Rows in the cache before the last verification."""
        self.found = Verified(0, (), False)
        self.uniforms = uniforms
        """Where draws come from; who compares backends looks at what lies just beside them."""


class NumpyDrafts(DraftOps):
    """The primitive `drafts` on NumPy arrays."""

    def drafts(self, spec: DraftSpec) -> Drafts:
        block = spec.block
        return Drafts(
            spec=spec,
            ids=np.full((1, block * (1 + block)), spec.mask_token_id, np.int32),
            start=np.zeros(1, np.int32),
            held=None if spec.held is None else np.zeros((1, block, spec.vocab_size), spec.held),
            memory=DraftScratch(spec),
        )

    def begin_drafts(self, drafts: Drafts, *, start: int, position: int) -> None:
        drafts.start[0] = start
        drafts.position = position

    def verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        logits = rows.reshape(-1, drafts.spec.vocab_size)
        masks = None if first is None else first.reshape(-1, drafts.spec.vocab_size)[::stride]
        chances = _draws(drafts, DrawKind.ACCEPT) if not drafts.spec.sampling.greedy else None
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
            kept = kept and token not in drafts.spec.stops
        new = (*drafts.ids[0, 1:count].tolist(), token)
        drafts.memory.found = Verified(count, new, token in drafts.spec.stops)
        drafts.memory.appended = int(drafts.start[0])
        drafts.ids[0, 0] = token
        drafts.start[0] += count
        drafts.position += count
        drafts.step += 1

    def append_kept(self, kv: Any, kv_new: Any, drafts: Drafts) -> None:
        start = drafts.memory.appended
        count = max(0, min(drafts.memory.found.num_kept, len(kv) - start))
        kv[start : start + count] = kv_new[:count]

    def propose(self, masks: Any, drafts: Drafts) -> None:
        block, scratch = drafts.block, drafts.memory
        rows = masks.reshape(-1, drafts.spec.vocab_size)
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
        return drafts.memory.found

    def draft_ids(self, drafts: Drafts) -> tuple[int, ...]:
        return tuple(drafts.ids[0, : drafts.block].tolist())


def _draws(drafts: Drafts, kind: DrawKind) -> np.ndarray:
    """Gives the uniforms of drafts 1..B-1: (B - 1,) float64."""
    spec = drafts.spec
    positions = drafts.position + np.arange(1, drafts.block)
    draws = drafts.memory.uniforms
    return draws(spec.seed, spec.sample_index, positions, drafts.step, kind)


def _mix(drafts: Drafts, row: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Gives beta times a causal row and 1 - beta times a mask's: (vocab,)."""
    if drafts.memory.mixed is None:
        return row
    assert mask is not None, "beta is below 1, and the proposals' first masks are not given"
    mixed, other = drafts.memory.mixed
    np.multiply(row, np.float32(drafts.spec.beta), out=mixed, dtype=np.float32)
    np.multiply(mask, np.float32(1.0 - drafts.spec.beta), out=other, dtype=np.float32)
    mixed += other
    return mixed


def _process(drafts: Drafts, scratch: RowScratch, row: np.ndarray) -> np.ndarray:
    return process(scratch, row, banned=drafts.memory.banned)


def _highest(drafts: Drafts, row: np.ndarray) -> int:
    return highest(_process(drafts, drafts.memory.row, row))[0]


def _weigh(drafts: Drafts, scratch: RowScratch, slot: int, row: np.ndarray) -> float:
    """Fills a slot with a row's weights and their chunks' sums; returns their sum."""
    sampling = drafts.spec.sampling
    _, top = highest(_process(drafts, scratch, row))
    weights = scratch.weights[slot]
    exponentiate(scratch.logits, top, sampling.temperature, weights)
    truncate(weights, sampling.top_k, sampling.top_p)
    return sum_chunks(scratch, slot)


def _verify_row(
    drafts: Drafts, row: np.ndarray, count: int, draft: int | None, chances: np.ndarray
) -> tuple[bool, int]:
    """Whether draft `count` is kept, and the token that stands there: it, or another."""
    scratch, own = drafts.memory, drafts.memory.row
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
    spec = drafts.spec
    at = scratch.uniforms(
        spec.seed, spec.sample_index, drafts.position + count, drafts.step, DrawKind.TOKEN
    )
    return False, int(draw(own, at.reshape(1))[0])
