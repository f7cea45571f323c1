"""Every kernel against its NumPy twin, on the device at hand: what a board's report says of them.

The tests make the same comparisons over more cases; here they take seconds and need no test
framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import EngineError
from .compare import (
    MAX_TIE_SHARE,
    SAMPLINGS,
    SELECTIONS,
    Pair,
    on_device,
    random_logits,
    sample_faults,
)
from .compare_drafts import DraftPair, random_steps
from .compare_transitions import TRANSITION_SAMPLINGS, TransitionPair, random_scores
from .cuda_ops import CudaOps
from .numpy_ops import NumpyOps
from .rows.contract import Sampling
from .unmask.contract import Score

VOCABULARIES = (5, 65, 517, 4096)
"""Ragged and real: a chunk of the kernels is 64 tokens."""
_PLAIN: dict[str, Any] = {"sampling": SAMPLINGS[0], "selection": SELECTIONS[3]}
MAX_FAULTS = 5
"""Told per kernel."""


@dataclass(slots=True, kw_only=True)
class KernelCheck:
    """How one kernel compares."""

    kernel: str
    cases: int = 0
    rows: int = 0
    """Rows or elements compared."""
    ties: int = 0
    """Rows whose uniform lies on a boundary of the distribution function."""
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it gives what NumPy gives."""
        return bool(self.cases) and not self.faults and self.ties <= MAX_TIE_SHARE * self.rows + 1


def check_kernels(ops: CudaOps) -> list[dict[str, Any]]:
    """Runs every kernel of the sampling and cache sources; returns one object per kernel.

    Those of drafting only mean something together, and are checked so, per type of logits.
    """
    checks: dict[str, Callable[[KernelCheck, CudaOps], None]] = {
        "sample_float32": lambda found, ops: _sample(found, ops, np.float32),
        "sample_float16": lambda found, ops: _sample(found, ops, np.float16),
        "transit_float32": lambda found, ops: _transit(found, ops, np.float32),
        "transit_float16": lambda found, ops: _transit(found, ops, np.float16),
        "begin_block": _begin,
        "commit": _commit,
        "append_rows": _append,
        "draft_float32": lambda found, ops: _draft(found, ops, np.float32),
        "draft_float16": lambda found, ops: _draft(found, ops, np.float16),
    }
    found = []
    for name, check in checks.items():
        result = KernelCheck(kernel=name)
        try:
            check(result, ops)
        except Exception as error:  # on a GPU that nobody has seen yet, anything
            result.faults.append(f"{type(error).__name__}: {error}")
        result.faults = result.faults[:MAX_FAULTS]
        found.append({**asdict(result), "ok": result.ok})
    return found


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
            found.cases, found.rows, found.ties = (
                found.cases + 1,
                found.rows + rows,
                found.ties + ties,
            )
            found.faults += [f"{selection}, {sampling}, V = {vocab}: {fault}" for fault in faults]
    _reports_a_bad_row(found, ops, dtype)


def _reports_a_bad_row(found: KernelCheck, ops: CudaOps, dtype: Any) -> None:
    pair = Pair.make(**_PLAIN, block=9, vocab=90, cuda=ops)
    pair.begin()
    logits = random_logits(1, 9, 90, dtype)
    logits[0, 4, 7] = np.nan
    ops.sample(on_device(ops, logits), pair.canvases[0])
    found.cases += 1
    try:
        ops.commit(pair.canvases[0], exact=True)
    except EngineError:
        return
    found.faults.append("a row that holds NaN is not reported")


def _transit(found: KernelCheck, ops: CudaOps, dtype: Any) -> None:
    """Both graphs and every heat, step by step to the end, some positions fixed."""
    for case, graph in enumerate(("uniform", "absorb")):
        for turn, sampling in enumerate(TRANSITION_SAMPLINGS):
            vocab = VOCABULARIES[(case + turn) % len(VOCABULARIES)]
            rule = ("tweedie", "euler")[turn % 2]
            pair = TransitionPair.make(
                ops, graph, sampling, rule=rule, block=9, vocab=vocab, fixed=(2,)
            )
            for step in range(3):
                rows, ties, faults = pair.step(random_scores(3 * turn + step, 9, vocab, dtype))
                found.cases, found.rows = found.cases + 1, found.rows + rows
                found.ties += ties
                found.faults += [f"{graph}, {sampling}, V = {vocab}: {fault}" for fault in faults]


def _draft(found: KernelCheck, ops: CudaOps, dtype: Any) -> None:
    """Every heat and beta over some steps of a text, of which few and many drafts are kept."""
    for turn, sampling in enumerate(SAMPLINGS):
        vocab, beta = VOCABULARIES[turn % len(VOCABULARIES)], (1.0, 0.6, 0.0)[turn % 3]
        block = 4 if vocab < 1000 else 2
        pair = DraftPair.make(ops, sampling=sampling, beta=beta, block=block, vocab=vocab)
        for step in range(4):
            rows = pair.host.block if step else 1
            run = pair.step if step else pair.open
            logits = random_steps(step, pair.host, rows, dtype, noise=(0.0, 0.5)[step % 2])
            decisions, ties, faults = run(logits)
            found.cases, found.rows = found.cases + 1, found.rows + decisions
            found.ties += ties
            found.faults += [f"{sampling}, beta {beta}, V = {vocab}: {fault}" for fault in faults]


def _begin(found: KernelCheck, ops: CudaOps) -> None:
    for block in (1, 7, 600):
        pair = Pair.make(**_PLAIN, block=block, vocab=90, cuda=ops)
        pair.begin([(index, 3) for index in range(0, block - 1, 3)])
        device, host = pair.canvases
        found.cases, found.rows = found.cases + 1, found.rows + block
        same = np.array_equal(ops.ids(device), host.ids[0])
        if not (same and np.array_equal(ops.masked(device), host.masked)):
            found.faults.append(f"block {block} begins with other ids or masks")


def _commit(found: KernelCheck, ops: CudaOps) -> None:
    """Every rule to the end of a block, equal scores and ends of text among them."""
    for selection in SELECTIONS:
        for block in (1, 7, 33):
            rng = np.random.default_rng(block)
            pair = Pair.make(
                sampling=Sampling(), selection=selection, block=block, vocab=90, cuda=ops
            )
            pair.begin([(index, 0) for index in range(1, block) if rng.random() < 0.1])
            device, host = pair.canvases
            for step in range(2 * block + 10):
                _stage(ops, pair, rng)
                progress = NumpyOps().commit(host)
                found.cases, found.rows = found.cases + 1, found.rows + block
                same = ops.commit(device, exact=True) == progress
                if not (same and np.array_equal(ops.ids(device), host.ids[0])):
                    found.faults.append(f"{selection}, block {block}: step {step} commits others")
                    break


def _stage(ops: CudaOps, pair: Pair, rng: np.random.Generator) -> None:
    """Gives both canvases the same scores, candidates and chosen positions."""
    device, host = pair.canvases
    block = len(host.masked)
    scores = np.round(rng.random(block), 1).astype(np.float32)
    assert host.selection is not None
    host.score[:] = -scores if host.selection.score == Score.ENTROPY else scores
    host.candidate[:] = rng.integers(0, 12, size=block)
    if host.selection.chooses_first:
        NumpyOps().choose(host)
    for name in ("score", "candidate", "chosen"):
        ops.device.upload(getattr(device, name), getattr(host, name))


def _append(found: KernelCheck, ops: CudaOps) -> None:
    for width, dtype in ((8, np.float32), (3, np.float16), (5, np.float32), (96, np.float16)):
        target = on_device(ops, np.zeros((40, 1, width), dtype))
        new = np.random.default_rng(width).normal(size=(16, 1, width)).astype(dtype)
        ops.append_kv(target, on_device(ops, new), 20, 15)
        expected = np.zeros((40, 1, width), dtype)
        expected[20:35] = new[:15]
        found.cases, found.rows = found.cases + 1, found.rows + 15
        if not np.array_equal(ops.to_host(target), expected):
            found.faults.append(f"rows of {width} {np.dtype(dtype).name} lie elsewhere")
