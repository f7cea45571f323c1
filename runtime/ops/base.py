"""The primitives that update rules call: their contracts, and the buffers they work on.

An update step is a fixed, short sequence of calls on buffers that the ops own, so that a device
backend can keep all of it on the device and capture it once:

    ops.assign(engine input, canvas.ids)      feed
    engine.run()
    ops.sample(logits, canvas)                candidates and scores of the masked rows
    ops.commit(canvas) -> Progress            selection, scatter, counts, end of text

Whatever changes from step to step (step number, masked count, hitting time) is state of the canvas,
never an argument. Update rules never index logits, KV or canvas arrays themselves.

Knows no family, engine or text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from .drafts import DraftOps
from .rows.contract import Sampling
from .unmask.contract import Selection

CHUNK = 64
"""Probabilities per partial sum of the distribution function."""


class Progress(NamedTuple):
    """What a commit changed, or the one before it (`behind`).

    A step over a finished block changes nothing. So if `behind` and nothing is masked any more,
    the run just made was one over the finished block, and its outputs are those of a commit run.
    """

    num_masked: int
    """Masked positions left; 0 also when the text ended within the block."""
    num_committed: int
    """Positions committed by this step."""
    num_final: int
    """Leading positions of the block without a mask: their text can be shown."""
    ended: bool
    """True when an end-of-text token stands at index `num_final`, all before it committed."""
    behind: bool = False
    """True when these are the figures of the step before; of the block's begin, in its first."""


class _Referable:
    """Lets ops notice when a canvas is no longer used."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True, kw_only=True, eq=False)
class Canvas(_Referable):
    """One block being denoised. Arrays are the ops' own: NumPy here, device arrays elsewhere."""

    sampling: Sampling
    selection: Selection | None
    """None where no masked position is committed: under a transition, and for drafts."""
    vocab_size: int
    seed: int
    sample_index: int
    mask_token_id: int
    """Marks masked positions in `ids`; -1 for families without a mask."""
    eos_token_id: int
    """Ends the text; -1: nothing does."""
    banned: tuple[int, ...]
    """Ids that are never sampled, ascending."""

    ids: Any
    """(1, block) int32: committed ids, and the mask id elsewhere."""
    masked: Any
    """(block,) bool: positions still to commit. A position that holds the mask id but is not in
    here (behind the text's end) is left alone."""
    chosen: Any
    """(block,) bool: positions that `sample` chose, for the rules that choose first."""
    candidate: Any
    """(block,) int32: drawn ids of masked rows."""
    score: Any
    """(block,) float32: what orders the candidates, higher first."""
    log_prob: Any
    """(block,) float32: log-probability of the candidate under the model's own distribution
    (temperature 1, before top-k and top-p); kept for committed positions."""
    unmask_chance: Any
    """(steps,) float64: per step, the chance that a masked position is unmasked (`ancestral`)."""
    transition: Any = None
    """(steps, 5) float64, rows of `transition.transition_table`: what a step of the transition
    rules does. Their `masked` positions are those free to move."""
    sigma: Any = None
    """(1,) float32: the noise that the next run is told (transition rules)."""
    told: Any = None
    """(block,) float32: the share of masks that the next run is told, for graphs that see it: of
    `times`, or counted; 0 once nothing is left to fill."""
    times: Any = None
    """(steps + 1,) float32: that share before each step, where the selection is driven by time."""
    bias: Any = None
    """(vocab,) float32 added to every row's logits, or None."""
    allowed: Any = None
    """(block, ceil(vocab / 32)) uint32 or None: bit j of word w allows token 32 w + j."""
    seen: Any = None
    """(vocab,) bool: tokens of the text so far, kept only under a repetition penalty."""

    position: int = 0
    """Absolute position of the block's first token: what its draws are keyed by."""
    first: int = 0
    """Index of the first generated position; an end-of-text token before it is the prompt's."""
    step: int = 0
    """Steps done in this block."""
    num_masked: int = 0
    num_masked_at_start: int = 0
    time: float = 1.0
    """Diffusion time of the block under `first_hitting`."""
    scratch: Any = field(default=None, repr=False)
    """The ops' own working memory."""


class Ops(DraftOps, Protocol):
    """One backend's primitives; those of drafting stand in `drafts`."""

    @property
    def synchronous(self) -> bool:
        """True when reading a canvas costs no synchronisation, so that text may stream per step."""
        ...

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
        """Allocates everything a block needs; nothing is allocated per step afterwards.

        `tells` says that the graph sees time, so that `told` is wanted.
        """
        ...

    def begin_block(
        self, canvas: Canvas, ids: np.ndarray, masked: np.ndarray, *, position: int, first: int
    ) -> int:
        """Starts a block from host arrays: ids (block,) int32, masked (block,) bool.

        Resets step, time, scores and counts, and fills `told`; returns the number of masked
        positions.
        """
        ...

    def mark_seen(self, canvas: Canvas, ids: np.ndarray) -> None:
        """Tells the repetition penalty about ids (host, int32) outside the canvas."""
        ...

    def sample(self, logits: Any, canvas: Canvas) -> None:
        """Gives every masked row (or every chosen one) a candidate, its log_prob and its score.

        Args:
            logits: (block, vocab) or (1, block, vocab), float32 or float16, read only.
            canvas: `candidate`, `log_prob`, `score` and `chosen` are written in place.

        A row's logits l become l + bias, then the repetition penalty on seen tokens, then -inf on
        banned and disallowed ids. At temperature 0 the candidate is the highest, the lowest id
        among equals. Otherwise weights w = exp((l - max l) / T), float32, restricted to the top k
        and then, within them, to the smallest set of highest weights whose share reaches top_p
        (equal weights: lower ids first); the candidate is drawn from them by `TOKEN`'s uniform u at
        (position, step): with chunk sums of 64 weights, each summed in float32 in eight interleaved
        partial sums s_j = w_j + w_(j+8) + ..., joined ((s0+s1)+(s2+s3))+((s4+s5)+(s6+s7)), and
        accumulated in float64 in order, it lies in the first chunk whose cumulative sum exceeds
        u times the total, and is the first id there at which the running float64 sum does. (A
        device accumulates integers, in units of 2^-46 of the highest chunk sum: the same to 1e-10
        of the total.)

        Under a transition rule every free row draws its next token instead. Logits are log-ratios
        to the token x that stands there: s_y = exp(l_y), float32, and 0 at x, at banned and at
        disallowed ids. Their sum S gives s_y the weight max(s_y - offset (1 + S), 0), and with M
        the sum of weights (both sums in chunks, as above) the position moves if u times
        gain M + max(stay - slope S, 0) is less than gain M: `chosen`. The share of u below that,
        a uniform again, then draws `candidate` from the weights as above, which are first divided
        by the highest, raised to 1 / T and restricted to top-k and top-p (at temperature 0: the
        highest weight, the lowest id among equals).

        Raises:
            EngineError: A row holds NaN, or no finite logit that is allowed, or ratios that
                overflow. Device ops raise it at the next `commit`.
        """
        ...

    def commit(self, canvas: Canvas, *, exact: bool = False) -> Progress:
        """Commits positions by the canvas's selection (see `unmask.contract`).

        Scatters candidates into `ids`, clears them in `masked`, counts the step, and ends the
        text at the first end-of-text token that has no mask before it. `told` becomes the next
        run's.

        Under a transition rule the chosen positions move, and `sigma` becomes the next step's. In
        a canvas with a mask they are free no more; in one without, all stay free up to the last
        step, and nothing is final before it.

        Args:
            canvas: One block.
            exact: Wait for this commit's own progress. Otherwise ops of a device may report the
                one before, so that the device has work while the host thinks.
        """
        ...

    def ids(self, canvas: Canvas) -> np.ndarray:
        """Copies the canvas's ids to the host: (block,) int32."""
        ...

    def masked(self, canvas: Canvas) -> np.ndarray:
        """Copies the canvas's masked flags to the host: (block,) bool."""
        ...

    def assign(self, target: Any, source: Any) -> None:
        """Copies a host or own array into a buffer of the same number of elements."""
        ...

    def rows(self, logits: Any, start: int, count: int) -> Any:
        """Gives a view of rows [start, start + count) of (1, block, vocab) logits."""
        ...

    def append_kv(self, kv: Any, kv_new: Any, start: int, count: int) -> None:
        """Writes rows [0, count) of kv_new behind `start` rows of kv: a contiguous copy.

        Rolling back needs no call: rows from `start` on are ignored by the graph.
        """
        ...

    def to_host(self, array: Any) -> np.ndarray:
        """Gives an array as NumPy, valid until the engine's next run."""
        ...
