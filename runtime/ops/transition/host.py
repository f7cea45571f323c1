"""Transition steps in NumPy: the reference for kernels, and the CPU path.

Rows go through in groups that fit the second-level cache, so that log-scores are read from memory
once, while the number of calls stays small for small vocabularies. Only rows that move are looked
at again. With a small vocabulary it is calls that cost: the first of each kind takes 5 to 20 us,
since the graph run has emptied the caches. So calls are few, and of few kinds. Knows no graph of
noise.
"""

from __future__ import annotations

from math import inf

import numpy as np

from ...errors import EngineError
from ...noise.philox import DrawKind
from ..canvas.host import STEPS_PER_DRAW, NumpyCanvases, NumpyPlace, block_arrays, view_arrays
from ..core import Progress
from ..rows.contract import CHUNK, Sampling
from ..rows.host import locate, truncate
from .contract import TransitionCanvas, TransitionOps, TransitionSpec

GROUP_ELEMENTS = 1 << 16
"""Weights worked on at a time: 256 KiB. On an EPYC core, V = 8,192, a step takes 4.4 ms for 256
rows then; 5.3 with half of it, 4.0 with twice that, which smaller caches would not hold."""

DRAWS_AT_ONCE = 4096
"""Uniforms from which on a call's own cost does not count."""

ROUNDING = 1.0 + 1e-5
"""By so much float32 sums of weights could at most exceed those of ratios."""


class TransitionScratch:
    """Working memory for one group of rows."""

    def __init__(self, block: int, vocab_size: int, banned: tuple[int, ...]) -> None:
        padded = -(-vocab_size // CHUNK) * CHUNK
        self.group = min(block, max(1, GROUP_ELEMENTS // padded))
        """Rows per group."""
        self.banned = banned
        self.index = np.arange(self.group)
        self.logits = np.zeros((self.group, vocab_size), np.float32)
        """Log-scores of rows that do not follow each other, or that something is added to."""
        self.chunks = np.zeros((self.group, padded // CHUNK, CHUNK), np.float32)
        """Weights; zeros behind the vocabulary's end."""
        self.flat = self.chunks.reshape(self.group, padded)
        self.weights = self.flat[:, :vocab_size]
        self.sums = np.zeros((self.group, padded // CHUNK), np.float32)

    def ratios(
        self,
        log_score: np.ndarray,
        rows: np.ndarray,
        ids: np.ndarray | None,
        *,
        bias: np.ndarray | None,
        allowed: np.ndarray | None,
    ) -> None:
        """Writes s_y of some rows into the first slots.

        Args:
            log_score: (block, V) float32 or float16.
            rows: (n,) ascending, n at most `group`.
            ids: (n,) the tokens there; None: MASK, which is banned.
            bias: (V,) float32 added to the log-scores, or None.
            allowed: (block, ceil(V / 32)) uint32, or None.
        """
        count, first = len(rows), rows[0]
        weights = self.weights[:count]
        if rows[-1] - first == count - 1:
            source = log_score[first : first + count]
        elif log_score.dtype == np.float32:
            # Rows are within; with "raise" they would be copied twice.
            source = log_score.take(rows, axis=0, out=self.logits[:count], mode="clip")
        else:
            source = log_score.take(rows, axis=0)
        if bias is not None:
            source = np.add(source, bias, out=self.logits[:count])
        np.exp(source, out=weights, dtype=np.float32)
        if ids is not None:
            weights[self.index[:count], ids] = 0.0
        for token in self.banned:
            weights[:, token] = 0.0
        if allowed is not None:
            words = allowed[rows].astype("<u4", copy=False).view(np.uint8)
            bits = np.unpackbits(words, axis=1, bitorder="little")[:, : weights.shape[1]]
            weights[bits == 0] = 0.0

    def total(self, count: int) -> np.ndarray:
        """Sums the first slots in chunks of 64, and these in float64: (count,)."""
        np.add.reduce(self.chunks[:count], axis=2, out=self.sums[:count])
        return np.add.reduce(self.sums[:count], axis=1, dtype=np.float64)

    def lower(self, slots: np.ndarray, floor: np.ndarray) -> np.ndarray:
        """Subtracts (n,) from some slots, not below 0; gives their sums as `total` does.

        They are moved into the first n slots.
        """
        count = len(slots)
        rows = self.flat[:count]
        kept = rows if slots[-1] == count - 1 else self.flat[slots]
        np.subtract(kept, floor.astype(np.float32)[:, None], out=rows)
        np.maximum(rows, np.float32(0.0), out=rows)
        return self.total(count)

    def draw(self, slots: np.ndarray, shares: np.ndarray, sampling: Sampling) -> np.ndarray:
        """Draws an id from each of some slots: (n,) int64."""
        temperature = sampling.temperature
        if temperature == 0.0:
            return self.weights[slots].argmax(axis=1)
        if temperature != 1.0 or sampling.truncates:
            for slot in slots.tolist():
                self._sharpen(slot, temperature, sampling)
        return locate(self.chunks, self.sums, slots, shares)

    def _sharpen(self, slot: int, temperature: float, sampling: Sampling) -> None:
        weights = self.weights[slot]
        np.multiply(weights, np.float32(1.0) / weights.max(), out=weights)
        if temperature != 1.0:
            np.power(weights, np.float32(1.0 / temperature), out=weights)
        truncate(weights, sampling.top_k, sampling.top_p)
        np.add.reduce(self.chunks[slot], axis=1, out=self.sums[slot])


def transit(
    scratch: TransitionScratch,
    log_score: np.ndarray,
    rows: np.ndarray,
    ids: np.ndarray | None,
    step: np.ndarray,
    uniforms: np.ndarray,
    sampling: Sampling,
    *,
    bias: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the next token of some rows.

    Args:
        scratch: Of this block and vocabulary.
        log_score: (block, V) float32 or float16, read only.
        rows: (n,) int64 ascending: the rows to draw.
        ids: (n,) the tokens there; None: MASK, which is banned.
        step: (5,) row of `transition.transition_table`.
        uniforms: (n,) float64.
        sampling: Temperature, top-k and top-p.
        bias: (V,) float32, or None.
        allowed: (block, ceil(V / 32)) uint32, or None.

    Returns:
        (n,) bool: which rows move; (m,) int64: the ids that those move to.

    Raises:
        EngineError: NaN or overflow in a row, or nothing that it could do.
    """
    moving, tokens = _transit(
        scratch, log_score, rows, ids, step, uniforms, sampling, bias=bias, allowed=allowed
    )
    moved = np.zeros(len(rows), bool)
    moved[moving] = True
    return moved, tokens


def _transit(
    scratch: TransitionScratch,
    log_score: np.ndarray,
    rows: np.ndarray,
    ids: np.ndarray | None,
    step: np.ndarray,
    uniforms: np.ndarray,
    sampling: Sampling,
    *,
    bias: np.ndarray | None,
    allowed: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Does what `transit` does; gives (m,) indices of `rows` instead of (n,) flags."""
    found = []
    for begin in range(0, len(rows), scratch.group):
        part = slice(begin, begin + scratch.group)
        own = None if ids is None else ids[part]
        with np.errstate(over="ignore", invalid="ignore"):
            scratch.ratios(log_score, rows[part], own, bias=bias, allowed=allowed)
            total = scratch.total(len(rows[part]))
            moving, slots, shares = _movers(scratch, total, step, uniforms[part])
        if len(moving):
            found.append((begin + moving, scratch.draw(slots, shares, sampling)))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(found) == 1:
        return found[0]
    return np.concatenate([part for part, _ in found]), np.concatenate([part for _, part in found])


def _movers(
    scratch: TransitionScratch, total: np.ndarray, step: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives the rows that move, as indices of `total`, the slots where each one's weights stand,
    and the share of them at which its draw lies.

    A row's weights are at most its ratios, so most rows that stay are known to from the sum of
    these alone; only the others' weights are made. Rows that are NaN, infinite or 0 throughout are
    among the others: no comparison finds that they stay.
    """
    _, gain, offset, stay, slope = step.tolist()
    still = stay - slope * total
    still[still < 0.0] = 0.0
    most = (gain * ROUNDING) * total
    stays = uniforms * (most + still) > most
    rows = slots = (~stays).nonzero()[0]
    if not len(rows):
        return rows, rows, total[:0]
    mass = total[rows]
    if offset:
        _check(mass + still[rows])  # NaN would stay in the scratch, behind the vocabulary's end
        mass = scratch.lower(rows, offset * (1.0 + mass))
        slots = scratch.index[: len(rows)]
    move = gain * mass
    everything = move + still[rows]
    _check(everything)
    target = uniforms[rows] * everything
    goes = target < move
    return rows[goes], slots[goes], target[goes] / move[goes]


def _check(everything: np.ndarray) -> None:
    # A sum of at most `group` float64 numbers overflows only if one of them has.
    if not (np.minimum.reduce(everything) > 0.0 and np.add.reduce(everything) < inf):
        raise EngineError(
            "a row of log-scores has ratios that are not finite, or all 0; the graph "
            "overflows: try another precision, or allow more tokens"
        )


class TransitionPlace(NumpyPlace):
    """A block of free positions, and the host's working memory for it."""

    __slots__ = ("scratch", "sigma")

    spec: TransitionSpec

    def __init__(self, spec: TransitionSpec) -> None:
        super().__init__(spec)
        self.sigma: np.ndarray
        """(1,): the canvas's."""
        self.scratch = TransitionScratch(spec.block, spec.vocab_size, spec.banned)

    def reset(self) -> None:
        self.sigma[0] = self.spec.transition[0, 0]

    def coming_uniforms(self, kind: DrawKind) -> np.ndarray:
        # All of its steps will be taken, and only by what is free now.
        places = self.masked.nonzero()[0]
        fitting = max(STEPS_PER_DRAW, DRAWS_AT_ONCE // max(len(places), 1))
        count = max(min(fitting, len(self.spec.transition) - self.step), 1)
        draws = self.draw(kind, places, count)
        if len(places) == len(self.masked):
            return draws
        spread = np.zeros((count, len(self.masked)))
        spread[:, places] = draws
        return spread

    def sample(self, logits: np.ndarray) -> None:
        spec, rows = self.spec, self.masked.nonzero()[0]
        self.chosen.fill(False)
        moving, tokens = _transit(
            self.scratch,
            logits,
            rows,
            None if spec.mask_token_id in spec.banned else self.ids[rows],
            spec.transition[self.step],
            self.uniforms(DrawKind.TOKEN)[rows],
            spec.sampling,
            bias=spec.bias,
            allowed=spec.allowed,
        )
        moved = rows[moving]
        self.chosen[moved] = True
        self.candidate[moved] = tokens

    def commit(self) -> Progress:
        spec = self.spec
        moved = self.chosen.nonzero()[0]
        self.ids[moved] = self.candidate[moved]
        self.step += 1
        if spec.mask_token_id >= 0:
            self.masked[moved] = False
            self.num_masked -= len(moved)
        if self.step < len(spec.transition):
            self.sigma[0] = spec.transition[self.step, 0]
        else:
            self.masked.fill(False)
            self.num_masked = 0
        if self.num_masked and spec.mask_token_id < 0:
            return Progress(self.num_masked, len(moved), 0, False)  # all may still change
        num_final, ended = self.end_of_text()
        if ended:
            self.masked.fill(False)
            self.num_masked = 0
        return Progress(self.num_masked, len(moved), num_final, ended)


class NumpyTransition(NumpyCanvases[TransitionSpec, TransitionCanvas], TransitionOps):
    """The primitive `transition` on NumPy arrays."""

    def canvas(self, spec: TransitionSpec) -> TransitionCanvas:
        place = TransitionPlace(spec)
        arrays, sigma = block_arrays(spec), np.zeros(1, np.float32)
        view_arrays(place, {**arrays, "sigma": sigma[None]})
        return TransitionCanvas(spec=spec, place=place, sigma=sigma, **arrays)
