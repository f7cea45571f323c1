"""Unmasking in NumPy: the reference for kernels, and the CPU path.

Only masked rows are touched, and nothing of a canvas's size or larger is allocated per step.
"""

from __future__ import annotations

import numpy as np

from ...noise.philox import DrawKind
from ..canvas.host import NumpyCanvases, NumpyPlace, block_arrays, view_arrays
from ..core import Progress
from ..rows.host import (
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
from . import selection
from .contract import Kind, Score, UnmaskCanvas, UnmaskOps, UnmaskSpec


class UnmaskPlace(NumpyPlace):
    """A masked block, and the host's working memory for it."""

    __slots__ = (
        "banned",
        "before",
        "log_prob",
        "num_kept",
        "score",
        "scratch",
        "seen",
        "time",
        "time_input",
    )

    spec: UnmaskSpec

    def __init__(self, spec: UnmaskSpec) -> None:
        super().__init__(spec)
        self.score: np.ndarray
        self.log_prob: np.ndarray
        self.time_input: np.ndarray | None = None
        self.seen: np.ndarray | None = None
        self.before: np.ndarray | None = None
        self.scratch = RowScratch(spec.block, spec.vocab_size)
        self.banned = np.array(spec.banned, dtype=np.int64)
        self.num_kept = 0
        """Masks of the block that are never filled; counted for graphs that see time."""
        self.time = 1.0
        """Diffusion time of the block under `FIRST_HITTING`."""

    def reset(self) -> None:
        self.log_prob.fill(0.0)
        self.time = 1.0
        if self.time_input is not None:
            holes = int(np.count_nonzero(self.ids == self.spec.mask_token_id))
            self.num_kept = holes - self.num_masked
        self.tell()

    def sample(self, logits: np.ndarray) -> None:
        spec, scratch = self.spec, self.scratch
        if spec.selection.chooses_first:
            self.choose()
            rows = np.flatnonzero(self.chosen)
        else:
            rows = self.open()
        if not len(rows):
            return
        seen = None if self.seen is None else np.flatnonzero(self.seen)
        for place, row in enumerate(rows.tolist()):
            process(
                scratch,
                self._row(logits, row),
                banned=self.banned,
                bias=spec.bias,
                allowed=None if spec.allowed is None else spec.allowed[row],
                seen=seen,
                penalty=spec.sampling.repetition_penalty,
            )
            self._weigh(place, row)
        self._draw(rows)

    def open(self) -> np.ndarray:
        """Gives the masked positions that the next step may commit, ascending."""
        spec, masked = self.spec, np.flatnonzero(self.masked)
        if spec.first_alone and self.masked[0]:
            return masked[:1]
        if spec.sub_block is None or not len(masked):
            return masked
        return masked[masked < (masked[0] // spec.sub_block + 1) * spec.sub_block]

    def _row(self, logits: np.ndarray, row: int) -> np.ndarray:
        """The logits that speak for a position."""
        if self.before is None:
            return logits[row]
        return logits[row - 1] if row else self.before[0]

    def _weigh(self, place: int, row: int) -> None:
        """Makes a row's weights, its total, and its score where that needs no candidate."""
        sampling, scratch = self.spec.sampling, self.scratch
        temperature = sampling.temperature
        first, top = highest(scratch.logits)
        self.candidate[row] = first
        # Greedy rows share one place's memory, which then stays in the first-level cache.
        weights = scratch.weights[0 if temperature == 0.0 else place]
        exponentiate(scratch.logits, top, 1.0, weights)
        total = float(np.add.reduce(weights)) if temperature != 1.0 else sum_chunks(scratch, place)
        scratch.total[place] = total
        match self.spec.selection.score:
            case Score.ENTROPY:
                self.score[row] = -entropy(scratch, weights, top, total)
            case Score.MARGIN:
                self.score[row] = margin(weights, first, total)
            case _:
                pass
        if temperature in (0.0, 1.0) and not sampling.truncates:
            return
        if temperature != 1.0:
            exponentiate(scratch.logits, top, temperature, weights)
        truncate(weights, sampling.top_k, sampling.top_p)
        sum_chunks(scratch, place)

    def _draw(self, rows: np.ndarray) -> None:
        """Draws all rows' candidates, and fills what follows from them."""
        sampling, scratch = self.spec.sampling, self.scratch
        log_prob = -np.log(scratch.total[: len(rows)])
        if not sampling.greedy:
            candidate = draw(scratch, self.uniforms(DrawKind.TOKEN)[rows])
            self.candidate[rows] = candidate
            # The weight is exp((logit - top) / temperature); no drawn weight is 0.
            weight = scratch.weights[np.arange(len(rows)), candidate].astype(np.float64)
            log_prob += np.log(weight) * sampling.temperature
        self.log_prob[rows] = log_prob
        if self.spec.selection.score == Score.CONFIDENCE:
            self.score[rows] = np.exp(log_prob)

    def choose(self) -> None:
        """Fills `chosen` for the kinds that look at no logits."""
        masked = self.open()
        self.chosen.fill(False)
        if not len(masked):
            return
        rule = self.spec.selection
        match rule.kind:
            case Kind.RANDOM:
                count = selection.quota(self.num_masked_at_start, rule.steps, self.step)
                accept = selection.highest(self.uniforms(DrawKind.SELECT)[masked], count)
            case Kind.FIRST_HITTING:
                self.time *= float(self.uniforms(DrawKind.TIME)[0]) ** (1.0 / len(masked))
                draw_ = float(self.uniforms(DrawKind.CHOICE)[0])
                accept = selection.one_of(len(masked), draw_)
            case Kind.ANCESTRAL:
                chances = self.spec.unmask_chance
                assert chances is not None
                last = self.step >= len(chances) - 1
                chance = 1.0 if last else chances[self.step]
                accept = self.uniforms(DrawKind.SELECT)[masked] < chance
            case _:
                raise AssertionError(f"{rule.kind.name} does not choose first")
        self.chosen[masked] = accept

    def commit(self) -> Progress:
        accepted = self._accepted()
        self.ids[accepted] = self.candidate[accepted]
        self.masked[accepted] = False
        self.num_masked -= len(accepted)
        self.step += 1
        if self.seen is not None:
            self.seen[self.candidate[accepted]] = True
        num_final, ended = self.end_of_text()
        if ended:
            self.masked.fill(False)
            self.num_masked = 0
        self.tell()
        return Progress(self.num_masked, len(accepted), num_final, ended)

    def _accepted(self) -> np.ndarray:
        """Gives the indices that are committed now."""
        rule = self.spec.selection
        if rule.chooses_first:
            return np.flatnonzero(self.chosen)
        masked = self.open()
        scores = self.score[masked]
        match rule.kind:
            case Kind.THRESHOLD:
                accept = selection.threshold(scores, rule.limit)
            case Kind.FACTOR:
                accept = selection.factor(scores, rule.limit)
            case Kind.ENTROPY_BOUND:
                accept = selection.entropy_bound(scores, rule.limit)
            case Kind.QUOTA:
                count = selection.quota(self.num_masked_at_start, rule.steps, self.step)
                accept = selection.highest(scores, count)
            case _:
                raise AssertionError(f"{rule.kind.name} chooses first")
        return masked[accept]

    def tell(self) -> None:
        """Fills `time_input` for the next run."""
        if self.time_input is None:
            return
        times = self.spec.times
        if not self.num_masked:
            share = 0.0  # a run over the finished block
        elif times is not None:
            share = times[min(self.step, len(times) - 1)]
        else:
            share = (self.num_masked + self.num_kept) / len(self.masked)
        self.time_input.fill(share)


class NumpyUnmask(NumpyCanvases[UnmaskSpec, UnmaskCanvas], UnmaskOps):
    """The primitive `unmask` on NumPy arrays."""

    def canvas(self, spec: UnmaskSpec) -> UnmaskCanvas:
        shape = (1, spec.block)
        place = UnmaskPlace(spec)
        arrays = {
            **block_arrays(spec),
            "score": np.zeros(shape, np.float32),
            "log_prob": np.zeros(shape, np.float32),
        }
        view_arrays(place, arrays)
        time_input = seen = before = None
        if spec.sees_time:
            time_input = np.zeros(shape, np.float32)
            view_arrays(place, {"time_input": time_input})
        if spec.sampling.repetition_penalty != 1.0:
            seen = np.zeros((1, spec.vocab_size), bool)
            view_arrays(place, {"seen": seen})
        if spec.shifted is not None:
            before = np.zeros((1, 1, spec.vocab_size), spec.shifted)
            view_arrays(place, {"before": before})
        arrays |= {"time_input": time_input, "seen": seen, "before": before}
        return UnmaskCanvas(spec=spec, place=place, **arrays)

    def mark_seen(self, canvas: UnmaskCanvas, ids: np.ndarray) -> None:
        if canvas.seen is not None:
            canvas.seen[0, ids] = True
