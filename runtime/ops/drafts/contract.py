"""The primitives of drafting and verifying: contracts, and the state they work on.

A step over drafts d_0..d_(B-1), of which d_0 is certain, is a fixed sequence of calls:

    ops.assign(engine input, drafts.ids)        feed, and drafts.start
    engine.run()
    drafting.verify(rows behind drafts, drafts) how many are kept, and the token that follows
    drafting.append_kept(kv, kv_new, drafts)    their keys and values into the cache
    drafting.propose(masks' rows, drafts)       the next drafts
    drafting.verified(drafts) -> Verified       what became certain

Whatever changes from step to step is state, never an argument, so that a device captures all but
the last line once. There the host waits once per step: what is shown, and whether another step is
wanted, depends on it.

Knows no family, engine or text. Source: TiDAR (arXiv 2511.08923) section 3.3; acceptance by
min(1, p / q) and its residual: Leviathan et al. (arXiv 2211.17192).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..core import Referable
from ..rows.contract import RowSpec

MAX_STOPS = 7
"""Ids that may end a text."""


class Verified(NamedTuple):
    """What a step made certain."""

    num_kept: int
    """Drafts kept, d_0 among them: r, from 1 on. So many rows of the cache are new."""
    ids: tuple[int, ...]
    """The r tokens that became certain: d_1..d_(r-1) and the next step's d_0."""
    ended: bool
    """True when the last of `ids` ends the text. No draft behind such a token is kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DraftSpec(RowSpec):
    """What a text's drafts are made with; `block` is B."""

    mask_token_id: int
    stops: tuple[int, ...]
    """Ids that end the text."""
    beta: float = 1.0
    """Share of the causal logits in the distribution p that verifies."""
    held: str | None = None
    """The dtype of rows to be kept while another run overwrites them, if any are."""


@dataclass(slots=True, kw_only=True, eq=False)
class Drafts(Referable):
    """One text's drafts. Arrays are the ops' own: NumPy here, device arrays elsewhere."""

    spec: DraftSpec
    ids: Any
    """(1, B (1 + B)) int32: the drafts, then the mask id: what a step's run is fed."""
    start: Any
    """(1,) int32: rows in the cache, which is where d_0's will stand."""
    held: Any = None
    """(1, B, vocab): a place to keep rows; None if not asked for."""
    position: int = 0
    """Absolute position of d_0: what draws are keyed by."""
    step: int = 0
    """Verifications so far."""
    memory: Any = None
    """The ops' own working memory."""

    @property
    def block(self) -> int:
        """B."""
        return self.spec.block


class DraftOps(Protocol):
    """The primitive `drafts`."""

    def drafts(self, spec: DraftSpec) -> Drafts:
        """Allocates everything a text needs; nothing is allocated per step afterwards.

        Raises:
            ConfigError: More stops than kernels look at. Ops of a device raise it.
        """
        ...

    def begin_drafts(self, drafts: Drafts, *, start: int, position: int) -> None:
        """Sets where the next `verify` stands: rows in the cache, absolute position of d_0.

        For a text's first run d_0 is its last known token, the only one that is verified then.
        """
        ...

    def verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        """Finds the number r of drafts to keep, and the token m_r that follows them.

        Row i of `rows` is read after draft i, so that it is about draft i + 1; p_(i+1) is the
        softmax of beta times this row and 1 - beta times the first mask of proposal i + 1, after
        everything that `unmask` does to a row; so is q of the proposal that draft i + 1 was
        drawn from, at the time. Draft i + 1 is kept if all before it are, it is no stop, and

        - at temperature 0: it is the highest of p_(i+1), the lowest id among equals;
        - else: `ACCEPT`'s uniform u of (its position, the step) has u q(draft) < p(draft).

        m_r is the first draft that is not kept, if only for being a stop; else at temperature 0
        the highest of p_r, and else drawn by `TOKEN`'s uniform of (its position, the step), as
        `unmask` draws, from p_r behind the last draft and from the weights
        max(p_r - q_r, 0) behind others (from p_r where these are all 0).

        Args:
            rows: (1, n, vocab) logits, n = B, or 1 for a text's first run.
            drafts: Position, start and step go on; `ids` has m_r in front.
            first: (1, at least (n - 1) stride + 1, vocab): row i stride is the first mask of
                proposal i + 1. Read only if beta is below 1.
            stride: See `first`.

        Raises:
            EngineError: A row that is needed cannot be sampled. Device ops raise it at the next
                `verified`.
        """
        ...

    def append_kept(self, kv: Any, kv_new: Any, drafts: Drafts) -> None:
        """Writes the kept drafts' rows of kv_new, those from 0 on, behind the rows before them.

        To be called after `verify`. As many as `kv` has room for: a text that fills it goes on in
        a window. Rejected drafts leave nothing, and no mask's row is ever written.
        """
        ...

    def propose(self, masks: Any, drafts: Drafts) -> None:
        """Drafts tokens 1..B-1 from the proposal that follows the kept drafts.

        At temperature 0 the highest of each row, else drawn by `DRAFT`'s uniform of (position,
        step), where step counts the `verify` just made. q's weights are kept.

        Args:
            masks: (1, B, vocab): that proposal's rows; or (1, B², vocab): all proposals'.
            drafts: `ids` is written.
        """
        ...

    def verified(self, drafts: Drafts) -> Verified:
        """Waits for the last `verify` and tells what it found.

        Raises:
            EngineError: See `verify`.
        """
        ...

    def draft_ids(self, drafts: Drafts) -> tuple[int, ...]:
        """Copies the B drafts to the host."""
        ...
