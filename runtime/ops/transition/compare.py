"""Transitions on the device and in NumPy, and what may differ between the two.

A row may differ where its uniform lies within 1e-5 of a boundary of its distribution;
that is found by drawing it on the host once more, a little to either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...noise.philox import DrawKind, uniforms
from ...noise.schedule import make_schedule
from ...noise.transition import transition_table
from ..core import Check, KernelCheck
from ..cuda.ops import CudaOps
from ..host import NumpyOps
from ..rows.compare import BOUNDARY, VOCABULARIES, commit, on_device
from ..rows.contract import Sampling
from . import TRANSITION
from .contract import TransitionCanvas, TransitionSpec
from .device import CudaTransition
from .host import NumpyTransition, TransitionPlace, transit

TRANSITION_SAMPLINGS = (
    Sampling(temperature=1.0),
    Sampling(temperature=0.0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(temperature=1.0, top_k=9, top_p=0.5),
)
"""All ways through the transition kernel."""
_KEY = {"seed": 2**40 + 5, "sample_index": 3}
_POSITION = 17


@dataclass
class TransitionPair:
    """One canvas on each backend, in the same state. V - 1 is MASK, or no state at all."""

    cuda: CudaOps
    forms: tuple[CudaTransition, NumpyTransition]
    """On the device, in NumPy."""
    device: TransitionCanvas
    host: TransitionCanvas

    @classmethod
    def make(
        cls,
        cuda: CudaOps,
        graph: str,
        sampling: Sampling,
        *,
        rule: str = "tweedie",
        steps: int = 3,
        block: int,
        vocab: int,
        fixed: Sequence[int] = (),
        **fields: Any,
    ) -> TransitionPair:
        """Starts both on random ids, or on MASK, at all but some fixed positions."""
        table = transition_table(make_schedule("loglinear"), graph, rule, steps, vocab - 1)
        spec = TransitionSpec(
            block=block,
            vocab_size=vocab,
            sampling=sampling,
            mask_token_id=vocab - 1 if graph == "absorb" else -1,
            end_ids=(0,),
            banned=(vocab - 1,),
            transition=table,
            **_KEY,
            **fields,
        )
        forms = cuda.bind(TRANSITION), NumpyOps().bind(TRANSITION)
        assert isinstance(forms[0], CudaTransition)
        assert isinstance(forms[1], NumpyTransition)
        device, host = (form.canvas(spec) for form in forms)
        ids = np.random.default_rng(block).integers(1, vocab - 1, size=block).astype(np.int32)
        free = ~np.isin(np.arange(block), fixed)
        if graph == "absorb":
            ids[free] = vocab - 1
        for form, canvas in zip(forms, (device, host), strict=True):
            form.begin_block(canvas, ids, free, position=_POSITION, first=0)
        return cls(cuda, (forms[0], forms[1]), device, host)

    def both(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Gives an array of the canvases, the device's first."""
        return self.cuda.to_host(getattr(self.device, name)), getattr(self.host, name)

    def step(self, log_score: np.ndarray) -> tuple[int, int, list[str]]:
        """Samples and commits on both: rows drawn, those that differ at a boundary, and faults."""
        host, cuda, (device_form, host_form) = self.host, self.cuda, self.forms
        rows, before = np.flatnonzero(host.masked), host.ids[0].copy()
        given = on_device(cuda, log_score)
        device_form.sample(given, self.device)
        cuda.device.synchronize()  # `given` must live until the kernel has read it
        host_form.sample(log_score, host)
        goes, expected = (array[0] for array in self.both("chosen"))
        tokens, wanted = (array[0] for array in self.both("candidate"))
        found = np.where(goes.astype(bool), tokens, before)
        right = np.where(expected, wanted, before)
        differing = rows[found[rows] != right[rows]].tolist()
        faults = [
            f"row {row} goes to {found[row]}, not {right[row]}"
            for row in differing
            if not self._at_a_boundary(log_score.reshape(len(before), -1), row, before)
        ]
        # From here on both are the same again, whatever a boundary did.
        for name in ("chosen", "candidate"):
            cuda.device.upload(getattr(self.device, name), getattr(host, name))
        if commit(device_form, self.device, exact=True) != commit(host_form, host):
            faults.append("the commits' reports differ")
        if not np.array_equal(device_form.ids(self.device), host.ids[0]):
            faults.append("the committed ids differ")
        if not np.array_equal(device_form.masked(self.device), host.masked[0]):
            faults.append("other positions are free")
        if self.both("sigma")[0] != host.sigma[0]:
            faults.append("the next run is fed another noise")
        return len(rows), len(differing), faults

    def _at_a_boundary(self, log_score: np.ndarray, row: int, before: np.ndarray) -> bool:
        own = self.host.place
        assert isinstance(own, TransitionPlace)
        draw = uniforms(**_KEY, position=_POSITION + row, step=own.step, kind=DrawKind.TOKEN)
        found = set()
        for aside in (-BOUNDARY, 0.0, BOUNDARY):
            goes, token = transit(
                own.scratch,
                log_score,
                np.array([row]),
                before[[row]],
                own.spec.transition[own.step],
                np.clip(draw.reshape(1) + aside, 0.0, 1.0),
                own.spec.sampling,
                bias=own.spec.bias,
                allowed=own.spec.allowed,
            )
            found.add((bool(goes[0]), *token.tolist()))
        return len(found) > 1


def random_scores(seed: int, block: int, vocab: int, dtype: Any = np.float32) -> np.ndarray:
    """Gives (1, block, vocab) log-scores of about 1 in all."""
    rows = np.random.default_rng(seed).normal(size=(1, block, vocab)) * 1.5
    return (rows - np.log(vocab)).astype(dtype)


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


CHECKS: dict[str, Check] = {
    "transit_float32": lambda found, ops: _transit(found, ops, np.float32),
    "transit_float16": lambda found, ops: _transit(found, ops, np.float16),
}
