"""The primitives in NumPy: the reference for every other backend, and the CPU path.

Contracts stand in `base.Ops`. Only masked rows are touched, and nothing of a canvas's size or
larger is allocated per step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..noise.philox import DrawKind
from . import selection
from .base import Canvas, Progress
from .coming_draws import coming_draws
from .numpy_drafts import NumpyDrafts
from .rows.contract import Sampling
from .rows.host import (
    RowScratch,
    draw,
    entropy,
    exponentiate,
    highest,
    margin,
    process,
    sum_chunks,
    truncate,
)
from .transitions import TransitionScratch, commit_transition, draw_transition
from .unmask.contract import Kind, Score, Selection


class _Scratch:
    """A NumPy canvas's working memory."""

    def __init__(
        self, block: int, vocab_size: int, banned: tuple[int, ...], *, transition: bool
    ) -> None:
        self.row = RowScratch(0 if transition else block, vocab_size)
        self.rows = TransitionScratch(block, vocab_size, banned) if transition else None
        self.banned = np.array(banned, dtype=np.int64)
        self.draws: dict[DrawKind, tuple[int, np.ndarray]] = {}
        self.num_kept = 0
        """Masks of the block that are never filled; counted for graphs that see time."""
        self.hole = -1
        """Index of the first mask at the last commit, all before it being no end of text; or -1."""


class NumpyOps(NumpyDrafts):
    """`Ops` on NumPy arrays."""

    name = "numpy"
    synchronous = True

    def canvas(
        self,
        *,
        block: int,
        vocab_size: int,
        sampling: Sampling,
        selection: Selection | None,
        seed: int,
        sample_index: int,
        mask_token_id: int,
        eos_token_id: int,
        banned: tuple[int, ...],
        unmask_chance: np.ndarray | None = None,
        transition: np.ndarray | None = None,
        tells: bool = False,
        times: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
    ) -> Canvas:
        """See Ops."""
        moves = transition is not None
        return Canvas(
            sampling=sampling,
            selection=selection,
            vocab_size=vocab_size,
            seed=seed,
            sample_index=sample_index,
            mask_token_id=mask_token_id,
            eos_token_id=eos_token_id,
            banned=banned,
            ids=np.full((1, block), mask_token_id, np.int32),
            masked=np.zeros(block, bool),
            chosen=np.zeros(block, bool),
            candidate=np.zeros(block, np.int32),
            score=np.zeros(block, np.float32),
            log_prob=np.zeros(block, np.float32),
            unmask_chance=unmask_chance,
            transition=transition,
            sigma=np.zeros(1, np.float32) if moves else None,
            told=np.zeros(block, np.float32) if tells else None,
            times=times,
            bias=bias,
            allowed=allowed,
            seen=np.zeros(vocab_size, bool) if sampling.repetition_penalty != 1.0 else None,
            scratch=_Scratch(block, vocab_size, banned, transition=moves),
        )

    def begin_block(
        self, canvas: Canvas, ids: np.ndarray, masked: np.ndarray, *, position: int, first: int
    ) -> int:
        """See Ops."""
        canvas.ids[0] = ids
        canvas.masked[:] = masked
        canvas.log_prob.fill(0.0)
        canvas.position, canvas.first = position, first
        canvas.step, canvas.time = 0, 1.0
        canvas.num_masked = canvas.num_masked_at_start = int(np.count_nonzero(masked))
        canvas.scratch.draws.clear()
        canvas.scratch.hole = -1
        if canvas.told is not None:
            holes = int(np.count_nonzero(canvas.ids == canvas.mask_token_id))
            canvas.scratch.num_kept = holes - canvas.num_masked
            tell(canvas, canvas.scratch.num_kept)
        if canvas.transition is not None:
            canvas.sigma[0] = canvas.transition[0, 0]
        return canvas.num_masked

    def mark_seen(self, canvas: Canvas, ids: np.ndarray) -> None:
        """See Ops."""
        if canvas.seen is not None:
            canvas.seen[ids] = True

    def sample(self, logits: Any, canvas: Canvas) -> None:
        """See Ops."""
        logits = logits.reshape(-1, canvas.vocab_size)
        if canvas.transition is not None:
            draw_transition(canvas, logits, self._draws(canvas, DrawKind.TOKEN))
            return
        assert canvas.selection is not None
        if canvas.selection.chooses_first:
            self.choose(canvas)
            rows = np.flatnonzero(canvas.chosen)
        else:
            rows = np.flatnonzero(canvas.masked)
        if not len(rows):
            return
        scratch = canvas.scratch.row
        seen = None if canvas.seen is None else np.flatnonzero(canvas.seen)
        for slot, row in enumerate(rows.tolist()):
            process(
                scratch,
                logits[row],
                banned=canvas.scratch.banned,
                bias=canvas.bias,
                allowed=None if canvas.allowed is None else canvas.allowed[row],
                seen=seen,
                penalty=canvas.sampling.repetition_penalty,
            )
            self._weigh(canvas, slot, row)
        self._draw(canvas, rows)

    def _weigh(self, canvas: Canvas, slot: int, row: int) -> None:
        """Makes a row's weights, its total, and its score where that needs no candidate."""
        sampling, scratch = canvas.sampling, canvas.scratch.row
        temperature = sampling.temperature
        assert canvas.selection is not None
        first, top = highest(scratch.logits)
        canvas.candidate[row] = first
        # Greedy rows share one slot's memory, which then stays in the first-level cache.
        weights = scratch.weights[0 if temperature == 0.0 else slot]
        exponentiate(scratch.logits, top, 1.0, weights)
        total = float(np.add.reduce(weights)) if temperature != 1.0 else sum_chunks(scratch, slot)
        scratch.total[slot] = total
        match canvas.selection.score:
            case Score.ENTROPY:
                canvas.score[row] = -entropy(scratch, weights, top, total)
            case Score.MARGIN:
                canvas.score[row] = margin(weights, first, total)
            case _:
                pass
        if temperature in (0.0, 1.0) and not sampling.truncates:
            return
        if temperature != 1.0:
            exponentiate(scratch.logits, top, temperature, weights)
        truncate(weights, sampling.top_k, sampling.top_p)
        sum_chunks(scratch, slot)

    def _draw(self, canvas: Canvas, rows: np.ndarray) -> None:
        """Draws all rows' candidates, and fills what follows from them."""
        sampling, scratch = canvas.sampling, canvas.scratch.row
        log_prob = -np.log(scratch.total[: len(rows)])
        if not sampling.greedy:
            candidate = draw(scratch, self._draws(canvas, DrawKind.TOKEN)[rows])
            canvas.candidate[rows] = candidate
            # The weight is exp((logit - top) / temperature); no drawn weight is 0.
            weight = scratch.weights[np.arange(len(rows)), candidate].astype(np.float64)
            log_prob += np.log(weight) * sampling.temperature
        canvas.log_prob[rows] = log_prob
        assert canvas.selection is not None
        if canvas.selection.score == Score.CONFIDENCE:
            canvas.score[rows] = np.exp(log_prob)

    def choose(self, canvas: Canvas) -> None:
        """Fills `chosen` for the rules that look at no logits."""
        masked = np.flatnonzero(canvas.masked)
        canvas.chosen.fill(False)
        if not len(masked):
            return
        rule = canvas.selection
        assert rule is not None
        match rule.kind:
            case Kind.RANDOM:
                count = selection.quota(canvas.num_masked_at_start, rule.steps, canvas.step)
                scores = self._draws(canvas, DrawKind.SELECT)[masked]
                accept = selection.highest(scores, count)
            case Kind.FIRST_HITTING:
                canvas.time *= float(self._draws(canvas, DrawKind.TIME)[0]) ** (1.0 / len(masked))
                accept = selection.one_of(
                    len(masked), float(self._draws(canvas, DrawKind.CHOICE)[0])
                )
            case Kind.ANCESTRAL:
                last = canvas.step >= len(canvas.unmask_chance) - 1
                chance = 1.0 if last else canvas.unmask_chance[canvas.step]
                accept = self._draws(canvas, DrawKind.SELECT)[masked] < chance
            case _:
                raise AssertionError(f"{rule.kind.name} does not choose first")
        canvas.chosen[masked] = accept

    def _draws(self, canvas: Canvas, kind: DrawKind) -> np.ndarray:
        """Gives this step's uniforms of every position: (block,) float64."""
        made = canvas.scratch.draws.get(kind)
        if made is None or not made[0] <= canvas.step < made[0] + len(made[1]):
            made = canvas.scratch.draws[kind] = (canvas.step, coming_draws(canvas, kind))
        return made[1][canvas.step - made[0]]

    def commit(self, canvas: Canvas, *, exact: bool = False) -> Progress:
        """See Ops."""
        num_committed = 0
        if canvas.transition is not None:
            num_committed = commit_transition(canvas)
        elif canvas.num_masked:
            accepted = selection.accepted(canvas)
            num_committed = len(accepted)
            canvas.ids[0, accepted] = canvas.candidate[accepted]
            canvas.masked[accepted] = False
            canvas.num_masked -= num_committed
            canvas.step += 1
            if canvas.seen is not None:
                canvas.seen[canvas.candidate[accepted]] = True
        if canvas.transition is not None and canvas.num_masked and canvas.mask_token_id < 0:
            return Progress(canvas.num_masked, num_committed, 0, False)  # all may still change
        num_final, ended = self._end_of_text(canvas)
        if ended:
            canvas.masked.fill(False)
            canvas.num_masked = 0
        if canvas.told is not None:
            tell(canvas, canvas.scratch.num_kept)
        return Progress(canvas.num_masked, num_committed, num_final, ended)

    def _end_of_text(self, canvas: Canvas) -> tuple[int, bool]:
        """Gives the number of leading final positions, and whether the text ends behind them."""
        ids = canvas.ids[0]
        first = canvas.scratch.hole
        if first >= 0 and ids[first] == canvas.mask_token_id:
            return first, False
        holes = ids == canvas.mask_token_id
        num_final = int(holes.argmax())
        if not holes[num_final]:
            num_final = len(ids)
        if num_final > canvas.first:
            stops = ids[canvas.first : num_final] == canvas.eos_token_id
            stop = int(stops.argmax())
            if stops[stop]:
                return canvas.first + stop, True
        canvas.scratch.hole = num_final if num_final < len(ids) else -1
        return num_final, False

    def ids(self, canvas: Canvas) -> np.ndarray:
        """See Ops."""
        return canvas.ids[0].copy()

    def masked(self, canvas: Canvas) -> np.ndarray:
        """See Ops."""
        return canvas.masked.copy()

    def assign(self, target: Any, source: Any) -> None:
        """See Ops."""
        target[...] = np.asarray(source).reshape(target.shape)

    def rows(self, logits: Any, start: int, count: int) -> Any:
        """See Ops."""
        return logits[:, start : start + count]

    def append_kv(self, kv: Any, kv_new: Any, start: int, count: int) -> None:
        """See Ops."""
        kv[start : start + count] = kv_new[:count]

    def to_host(self, array: Any) -> np.ndarray:
        """See Ops."""
        return np.asarray(array)


def tell(canvas: Canvas, num_kept: int) -> None:
    """Fills `told` for the next run; `num_kept` masks of the block are never filled."""
    if not canvas.num_masked:
        share = 0.0  # a run over the finished block
    elif canvas.times is not None:
        share = canvas.times[min(canvas.step, len(canvas.times) - 1)]
    else:
        share = (canvas.num_masked + num_kept) / len(canvas.masked)
    canvas.told.fill(share)
