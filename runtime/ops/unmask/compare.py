"""Unmasking on the device and in NumPy, and what may differ between the two.

Tokens are equal except where the uniform lies within 1e-5 of a boundary of the distribution
function; such ties are counted, and their share is bounded by `MAX_TIE_SHARE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import EngineError
from ...gpu.device import Device
from ...noise.philox import DrawKind, uniforms
from ..core import Check, KernelCheck
from ..cuda.ops import CudaOps
from ..host import NumpyOps
from ..rows.compare import BOUNDARY, VOCABULARIES, commit, on_device
from ..rows.contract import Sampling
from . import UNMASK
from .contract import Kind, Score, Selection, UnmaskCanvas, UnmaskOps, UnmaskSpec
from .device import CudaUnmask
from .host import UnmaskPlace

RELATIVE_ERROR = 2e-5
"""Of log-probabilities and scores; float32 sums in another order."""
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(temperature=1.0, top_k=20, top_p=0.5),
    Sampling(temperature=30.0, top_k=1000, top_p=0.999),
    Sampling(temperature=0.01, top_p=0.3),
)
"""All ways through the sampling kernel."""
SELECTIONS = (
    Selection(kind=Kind.QUOTA, score=Score.CONFIDENCE),
    Selection(kind=Kind.QUOTA, score=Score.ENTROPY),
    Selection(kind=Kind.QUOTA, score=Score.MARGIN),
    Selection(kind=Kind.THRESHOLD, score=Score.CONFIDENCE, limit=0.9),
    Selection(kind=Kind.FACTOR, score=Score.CONFIDENCE, limit=1.0),
    Selection(kind=Kind.ENTROPY_BOUND, score=Score.ENTROPY, limit=0.1),
    Selection(kind=Kind.RANDOM),
    Selection(kind=Kind.FIRST_HITTING),
    Selection(kind=Kind.ANCESTRAL),
)
"""All kinds, and all scores."""


@dataclass
class Pair:
    """One canvas on each backend, in the same state."""

    cuda: CudaOps
    forms: tuple[CudaUnmask, UnmaskOps]
    """On the device, in NumPy."""
    canvases: tuple[UnmaskCanvas, UnmaskCanvas]

    @classmethod
    def make(
        cls,
        *,
        cuda: CudaOps,
        block: int,
        vocab: int,
        sampling: Sampling,
        selection: Selection,
        seed: int = 2**40 + 5,
        **fields: Any,
    ) -> Pair:
        """Makes both: V - 1 is the mask, V - 2 padding; 0 and 3 end the text."""
        own: dict[str, Any] = {"unmask_chance": 1 / np.arange(6, 0, -1), **fields}
        spec = UnmaskSpec(
            block=block,
            vocab_size=vocab,
            sampling=sampling,
            selection=selection,
            seed=seed,
            sample_index=3,
            mask_token_id=vocab - 1,
            end_ids=(0, 3),
            banned=(vocab - 2, vocab - 1),
            **own,
        )
        device, host = cuda.bind(UNMASK), NumpyOps().bind(UNMASK)
        assert isinstance(device, CudaUnmask)
        return cls(cuda, (device, host), (device.canvas(spec), host.canvas(spec)))

    @property
    def device(self) -> Device:
        """Where the first canvas is."""
        return self.cuda.device

    @property
    def host(self) -> Any:
        """The NumPy canvas's working memory."""
        return self.canvases[1].place

    def begin(
        self,
        fixed: Sequence[tuple[int, int]] = (),
        *,
        position: int = 17,
        first: int = 0,
    ) -> None:
        """Starts a block with some positions fixed: (index, token)."""
        spec = self.canvases[1].spec
        ids = np.full(spec.block, spec.mask_token_id, np.int32)
        for index, token in fixed:
            ids[index] = token
        self.begin_ids(ids, ids == spec.mask_token_id, position=position, first=first)

    def begin_ids(self, ids: np.ndarray, masked: np.ndarray, **where: int) -> None:
        """Starts a block from ids and masked flags on both."""
        for form, canvas in zip(self.forms, self.canvases, strict=True):
            form.begin_block(canvas, ids, masked, **where)  # pyright: ignore[reportArgumentType]

    def sample(self, logits: np.ndarray) -> None:
        """Samples the same logits on both."""
        given = on_device(self.cuda, logits)
        self.forms[0].sample(given, self.canvases[0])
        self.device.synchronize()  # `given` must live until the kernel has read it
        self.forms[1].sample(logits, self.canvases[1])

    def commit(self) -> tuple[Any, Any]:
        """Commits on both; gives their reports, the device's first."""
        device, host = self.forms
        return commit(device, self.canvases[0], exact=True), commit(host, self.canvases[1])

    def both(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Gives an array of the canvases, the device's first."""
        device, host = self.canvases
        return self.cuda.to_host(getattr(device, name)), getattr(host, name)

    def stage(self, *names: str) -> None:
        """Gives the device what NumPy's canvas holds."""
        device, host = self.canvases
        for name in names:
            self.device.upload(getattr(device, name), getattr(host, name))


def random_logits(
    seed: int, block: int, vocab: int, dtype: Any = np.float32, scale: float = 3.0
) -> np.ndarray:
    """Gives (1, block, vocab) normal logits under which the text hardly ends."""
    logits = np.random.default_rng(seed).normal(size=(1, block, vocab)) * scale
    logits[..., 0] = -20
    return logits.astype(dtype)


def sample_faults(pair: Pair) -> tuple[int, int, list[str]]:
    """Compares what `sample` wrote: rows drawn, those that differ at a boundary, and faults."""
    own: UnmaskPlace = pair.host
    selection = own.spec.selection
    chosen, expected = (array[0] for array in pair.both("chosen"))
    first = selection.chooses_first
    if first and not np.array_equal(chosen.astype(bool), expected):
        return 0, 0, ["other positions are chosen"]
    rows = np.flatnonzero(expected if first else own.masked)
    found, wanted = (array[0] for array in pair.both("candidate"))
    same = rows[found[rows] == wanted[rows]]
    faults = []
    for place, row in enumerate(rows.tolist()):
        drawn = not own.spec.sampling.greedy
        tie = drawn and _boundary(own, place, row, int(found[row])) < BOUNDARY
        if found[row] != wanted[row] and not tie:
            faults.append(f"row {row} has token {found[row]}, not {wanted[row]}")
    names = ["log_prob"] if selection.score == Score.NONE else ["log_prob", "score"]
    for name in names:
        ours, theirs = (array[0] for array in pair.both(name))
        if not np.allclose(ours[same], theirs[same], rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR):
            worst = float(np.abs(ours[same] - theirs[same]).max())
            faults.append(f"{name} is off by {worst:.1e}")
    return len(rows), len(rows) - len(same), faults


def _boundary(own: UnmaskPlace, place: int, row: int, token: int) -> float:
    """How far a row's uniform lies from the share at which `token` begins or ends."""
    spec = own.spec
    if not 0 <= token < spec.vocab_size:
        return 1.0
    weights = own.scratch.weights[place].astype(np.float64)
    shares = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    where = own.position + row
    draw = uniforms(spec.seed, spec.sample_index, where, own.step, DrawKind.TOKEN).item()
    return float(np.abs(shares[[token, token + 1]] - draw).min())


_PLAIN: dict[str, Any] = {"sampling": SAMPLINGS[0], "selection": SELECTIONS[3]}


def _sample(found: KernelCheck, ops: CudaOps, dtype: Any) -> None:
    """Every rule and heat over ragged vocabularies, some positions fixed."""
    for case, selection in enumerate(SELECTIONS):
        for turn, sampling in enumerate(SAMPLINGS):
            vocab = VOCABULARIES[(case + turn) % len(VOCABULARIES)]
            block = 9 if vocab < 1000 else 3
            pair = Pair.make(
                sampling=sampling, selection=selection, block=block, vocab=vocab, cuda=ops
            )
            pair.begin([(2, 1)])
            pair.sample(random_logits(case, block, vocab, dtype, scale=(0.3, 3.0, 20.0)[turn % 3]))
            rows, ties, faults = sample_faults(pair)
            found.cases, found.rows = found.cases + 1, found.rows + rows
            found.ties += ties
            found.faults += [f"{selection}, {sampling}, V = {vocab}: {fault}" for fault in faults]
    _reports_a_bad_row(found, ops, dtype)


def _reports_a_bad_row(found: KernelCheck, ops: CudaOps, dtype: Any) -> None:
    pair = Pair.make(**_PLAIN, block=9, vocab=90, cuda=ops)
    pair.begin()
    logits = random_logits(1, 9, 90, dtype)
    logits[0, 4, 7] = np.nan
    pair.forms[0].sample(on_device(ops, logits), pair.canvases[0])
    found.cases += 1
    try:
        commit(pair.forms[0], pair.canvases[0], exact=True)
    except EngineError:
        return
    found.faults.append("a row that holds NaN is not reported")


def _begin(found: KernelCheck, ops: CudaOps) -> None:
    for block in (1, 7, 600):
        pair = Pair.make(**_PLAIN, block=block, vocab=90, cuda=ops)
        pair.begin([(index, 3) for index in range(0, block - 1, 3)])
        found.cases, found.rows = found.cases + 1, found.rows + block
        if not _same(pair, ("ids", "masked")):
            found.faults.append(f"block {block} begins with other ids or masks")


def _same(pair: Pair, names: Sequence[str]) -> bool:
    return all(np.array_equal(*pair.both(name)) for name in names)


def _commit(found: KernelCheck, ops: CudaOps) -> None:
    """Every rule to the end of a block, equal scores and ends of text among them."""
    for selection in SELECTIONS:
        for block in (1, 7, 33):
            rng = np.random.default_rng(block)
            pair = Pair.make(
                sampling=Sampling(), selection=selection, block=block, vocab=90, cuda=ops
            )
            pair.begin([(index, 0) for index in range(1, block) if rng.random() < 0.1])
            for step in range(2 * block + 10):
                _stage(pair, rng)
                device, host = pair.commit()
                found.cases, found.rows = found.cases + 1, found.rows + block
                if device != host or not _same(pair, ("ids",)):
                    found.faults.append(f"{selection}, block {block}: step {step} commits others")
                    break


def _stage(pair: Pair, rng: np.random.Generator) -> None:
    """Gives both canvases the same scores, candidates and chosen positions."""
    own: UnmaskPlace = pair.host
    scores = np.round(rng.random(len(own.ids)), 1).astype(np.float32)
    own.score[:] = -scores if own.spec.selection.score == Score.ENTROPY else scores
    own.candidate[:] = rng.integers(0, 12, size=len(own.ids))
    if own.spec.selection.chooses_first:
        own.choose()
    pair.stage("score", "candidate", "chosen")


CHECKS: dict[str, Check] = {
    "sample_float32": lambda found, ops: _sample(found, ops, np.float32),
    "sample_float16": lambda found, ops: _sample(found, ops, np.float16),
    "begin_block": _begin,
    "commit": _commit,
}
