"""One text's drafts on the device and in NumPy, step by step, and what may differ between the two.

Kept drafts and tokens are equal but where a uniform lies within 1e-5 of where it would decide
otherwise; such ties are counted.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..gpu.device import DeviceArray
from ..noise.philox import DrawKind, uniforms
from .compare import BOUNDARY, on_device
from .cuda_ops import CudaOps
from .drafts import Drafts, Verified
from .numpy_ops import NumpyOps
from .rows.contract import Sampling

CACHE_ROWS, ROW = 40, (1, 6)
_SEED = 2**40 + 9


@dataclass
class DraftPair:
    """One text on each backend, in the same state. V - 1 is the mask, V - 2 padding, 0 a stop."""

    cuda: CudaOps
    device: Drafts
    host: Drafts
    caches: tuple[DeviceArray, np.ndarray]

    @classmethod
    def make(
        cls, cuda: CudaOps, *, sampling: Sampling, beta: float = 1.0, block: int, vocab: int
    ) -> DraftPair:
        """Makes both, behind a text of seven ids of which six are cached."""
        device, host = (
            ops.drafts(
                block=block,
                vocab_size=vocab,
                sampling=sampling,
                beta=beta,
                mask_token_id=vocab - 1,
                stops=(0,),
                banned=(vocab - 2, vocab - 1),
                seed=_SEED,
                sample_index=5,
            )
            for ops in (cuda, NumpyOps())
        )
        cache = np.zeros((CACHE_ROWS, *ROW), np.float32)
        pair = cls(cuda, device, host, (on_device(cuda, cache), cache))
        for ops, drafts in ((cuda, device), (NumpyOps(), host)):
            ops.begin_drafts(drafts, start=6, position=6)
        return pair

    def open(self, logits: np.ndarray) -> tuple[int, int, list[str]]:
        """A text's first run: (1, 1 + B, vocab) of the last known row, then of B masks."""
        return self._step(logits, 1)

    def step(self, logits: np.ndarray) -> tuple[int, int, list[str]]:
        """A step on (1, B (1 + B), vocab): decisions made, ties, and faults."""
        return self._step(logits, self.host.block)

    def _step(self, logits: np.ndarray, num_rows: int) -> tuple[int, int, list[str]]:
        before, host = deepcopy(self.host), self.host
        given = on_device(self.cuda, logits)
        kv_new = np.random.default_rng(host.step).normal(size=(host.block, *ROW))
        found = self._run(self.cuda, self.device, given, num_rows, kv_new)
        wanted = self._run(NumpyOps(), host, logits, num_rows, kv_new)
        drafts = self.cuda.draft_ids(self.device)
        decisions, ties, faults = len(wanted.ids) + host.block - 1, 0, []
        if found != wanted or drafts != NumpyOps().draft_ids(host):
            beside = (_beside(before, logits, num_rows, aside) for aside in (-BOUNDARY, BOUNDARY))
            if (found, drafts) in list(beside):
                ties = 1
            else:
                faults.append(f"step {host.step} gives {found}, {drafts}, not {wanted}, {host.ids}")
            self._equal()
        masks = logits[0, num_rows:]
        begin = (found.num_kept - 1) * host.block if len(masks) > host.block else 0
        faults += self._state_faults(masks[begin : begin + host.block])
        return decisions, ties, faults

    def _run(
        self, ops: Any, drafts: Drafts, logits: Any, num_rows: int, kv_new: np.ndarray
    ) -> Verified:
        """What an update rule does with a run that has its own head."""
        on_host = drafts is self.host
        block, cache = drafts.block, self.caches[on_host]
        masks = ops.rows(logits, num_rows, logits.shape[1] - num_rows)
        stride = block if num_rows > 1 else 1
        ops.verify(ops.rows(logits, 0, num_rows), drafts, first=masks, stride=stride)
        values = kv_new.astype(np.float32)
        source = values if on_host else on_device(self.cuda, values)
        ops.append_kept(cache, source, drafts)
        ops.propose(masks, drafts)
        return ops.verified(drafts)

    def _state_faults(self, masks: np.ndarray) -> list[str]:
        """Compares what stays on the device; `masks` (block, vocab) are the proposal's logits."""
        cuda, host, memory = self.cuda, self.host, self.device.scratch
        state = cuda.device.download(self.device.canvas.scratch.state)[0]
        start = int(cuda.to_host(self.device.start)[0])
        faults = []
        here = (start, int(state["position"]), int(state["step"]))
        if here != (int(host.start[0]), host.position, host.step):
            faults.append(f"the device stands at {here}")
        if not np.array_equal(cuda.to_host(self.caches[0]), self.caches[1]):
            faults.append("the caches differ")
        if host.scratch.drafted is not None and host.block > 1:
            found = _logits(cuda.to_host(memory.arrays["logits"]), masks.dtype)
            wanted = masks.copy()
            wanted[:, list(host.canvas.banned)] = -np.inf
            if not np.array_equal(found[1:, : masks.shape[1]], wanted[1:]):
                faults.append("other logits are kept of the drafts' distributions")
            shares = cuda.to_host(memory.arrays["shares"])[1:]
            if not np.allclose(shares, host.scratch.shares[1:], rtol=1e-5):
                faults.append("the sums of these weights differ")
        return faults

    def _equal(self) -> None:
        """Brings the device to where NumPy is, after a tie."""
        cuda, host, device = self.cuda, self.host, self.device
        cuda.begin_drafts(device, start=int(host.start[0]), position=host.position)
        cuda.device.upload(device.ids, host.ids)
        cuda.device.upload(self.caches[0], self.caches[1])


def _logits(kept: np.ndarray, dtype: Any) -> np.ndarray:
    """Gives what lies in memory for float32 logits, (block, stride), in the order of ids.

    They may be of another type, and in each chunk the eight that a lane reads stand together.
    """
    rows = kept.reshape(-1).view(dtype)[: kept.size].reshape(len(kept), -1, 8, 8)
    return rows.swapaxes(2, 3).reshape(kept.shape)


def _beside(
    drafts: Drafts, logits: np.ndarray, num_rows: int, aside: float
) -> tuple[Verified, tuple[int, ...]]:
    """What NumPy finds with every uniform a little aside."""

    def shifted(seed: int, index: int, position: Any, step: Any, kind: DrawKind) -> np.ndarray:
        return np.clip(uniforms(seed, index, position, step, kind) + aside, 0.0, 1.0 - 2**-53)

    other, ops = deepcopy(drafts), NumpyOps()
    other.scratch.uniforms = shifted
    masks = logits[:, num_rows:]
    stride = other.block if num_rows > 1 else 1
    ops.verify(logits[:, :num_rows], other, first=masks, stride=stride)
    ops.propose(masks, other)
    return ops.verified(other), ops.draft_ids(other)


def random_steps(
    seed: int, drafts: Drafts, num_rows: int, dtype: Any = np.float32, *, noise: float = 1.0
) -> np.ndarray:
    """Gives a run's logits, (1, rows, vocab), which agree on each position's token but for noise.

    Args:
        seed: Of the noise.
        drafts: Whose position they are about.
        num_rows: Rows behind drafts: 1 for a text's first run.
        dtype: float32 or float16.
        noise: 0: every draft is kept.
    """
    block, vocab = drafts.block, drafts.canvas.vocab_size
    about = np.random.default_rng(5).normal(size=(64, vocab)) * 2
    first = np.arange(num_rows) + 1
    masks = first[:, None] + np.arange(block) if num_rows > 1 else 1 + np.arange(block)
    positions = drafts.position + np.concatenate([first, masks.reshape(-1)])
    logits = about[positions % 64]
    logits = logits + np.random.default_rng(seed).normal(size=logits.shape) * noise
    return logits[None].astype(dtype)
