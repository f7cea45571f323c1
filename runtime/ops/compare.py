"""One canvas on the device and in NumPy, and what may differ between the two.

Tokens are equal except where the uniform lies within 1e-5 of a boundary of the distribution
function; such ties are counted, and whoever compares bounds their share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..gpu.device import Device, DeviceArray
from ..noise.philox import DrawKind, uniforms
from .base import Canvas
from .cuda_ops import CudaOps
from .numpy_ops import NumpyOps
from .rows.contract import Sampling
from .unmask.contract import Kind, Score, Selection

MAX_TIE_SHARE = 0.002
"""Share of drawn rows that may lie on a boundary."""
BOUNDARY = 1e-5
"""How near a boundary of the distribution function a uniform must lie to be a tie."""
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
    device: Device
    canvases: tuple[Canvas, Canvas]
    """On the device, in NumPy."""

    @classmethod
    def make(
        cls,
        *,
        sampling: Sampling,
        selection: Selection,
        block: int,
        vocab: int,
        cuda: CudaOps,
        seed: int = 2**40 + 5,
        **fields: Any,
    ) -> Pair:
        """Makes both: V - 1 is the mask, V - 2 padding, 0 ends the text."""
        own: dict[str, Any] = {"unmask_chance": 1 / np.arange(6, 0, -1), **fields}
        one, other = (
            ops.canvas(
                block=block,
                vocab_size=vocab,
                sampling=sampling,
                selection=selection,
                seed=seed,
                sample_index=3,
                mask_token_id=vocab - 1,
                eos_token_id=0,
                banned=(vocab - 2, vocab - 1),
                **own,
            )
            for ops in (cuda, NumpyOps())
        )
        return cls(cuda, cuda.device, (one, other))

    def begin(
        self, fixed: Sequence[tuple[int, int]] = (), *, position: int = 17, first: int = 0
    ) -> None:
        """Starts a block with some positions fixed: (index, token)."""
        device, host = self.canvases
        ids = np.full(host.ids.shape[1], host.mask_token_id, np.int32)
        for index, token in fixed:
            ids[index] = token
        for ops, canvas in ((self.cuda, device), (NumpyOps(), host)):
            ops.begin_block(canvas, ids, ids == host.mask_token_id, position=position, first=first)

    def sample(self, logits: np.ndarray) -> None:
        """Samples the same logits on both."""
        device, host = self.canvases
        given = on_device(self.cuda, logits)
        self.cuda.sample(given, device)
        self.cuda.device.synchronize()  # `given` must live until the kernel has read it
        NumpyOps().sample(logits, host)

    def both(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Gives an array of the canvases, the device's first."""
        device, host = self.canvases
        return self.cuda.to_host(getattr(device, name)), getattr(host, name)


def on_device(ops: CudaOps, values: np.ndarray) -> DeviceArray:
    """Uploads an array."""
    array = ops.device.empty(values.shape, values.dtype)
    ops.device.upload(array, values)
    return array


def random_logits(
    seed: int, block: int, vocab: int, dtype: Any = np.float32, scale: float = 3.0
) -> np.ndarray:
    """Gives (1, block, vocab) normal logits under which the text hardly ends."""
    logits = np.random.default_rng(seed).normal(size=(1, block, vocab)) * scale
    logits[..., 0] = -20
    return logits.astype(dtype)


def sample_faults(pair: Pair) -> tuple[int, int, list[str]]:
    """Compares what `sample` wrote: rows drawn, those that differ at a boundary, and faults."""
    host = pair.canvases[1]
    selection = host.selection
    assert selection is not None
    chosen, expected = pair.both("chosen")
    first = selection.chooses_first
    if first and not np.array_equal(chosen.astype(bool), expected):
        return 0, 0, ["other positions are chosen"]
    rows = np.flatnonzero(expected if first else host.masked)
    found, wanted = pair.both("candidate")
    same = rows[found[rows] == wanted[rows]]
    faults = []
    for slot, row in enumerate(rows.tolist()):
        tie = not host.sampling.greedy and _boundary(pair, slot, row, int(found[row])) < BOUNDARY
        if found[row] != wanted[row] and not tie:
            faults.append(f"row {row} has token {found[row]}, not {wanted[row]}")
    names = ["log_prob"] if selection.score == Score.NONE else ["log_prob", "score"]
    for name in names:
        ours, theirs = pair.both(name)
        if not np.allclose(ours[same], theirs[same], rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR):
            worst = float(np.abs(ours[same] - theirs[same]).max())
            faults.append(f"{name} is off by {worst:.1e}")
    return len(rows), len(rows) - len(same), faults


def _boundary(pair: Pair, slot: int, row: int, token: int) -> float:
    """How far a row's uniform lies from the share at which `token` begins or ends."""
    host = pair.canvases[1]
    if not 0 <= token < host.vocab_size:
        return 1.0
    weights = host.scratch.row.weights[slot].astype(np.float64)
    shares = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    draw = uniforms(
        host.seed, host.sample_index, host.position + row, host.step, DrawKind.TOKEN
    ).item()
    return float(np.abs(shares[[token, token + 1]] - draw).min())
