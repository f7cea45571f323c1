"""One text's drafts on the device and in NumPy, step by step, and what may differ between the two.

Kept drafts and tokens are equal but where a uniform lies within 1e-5 of where it would decide
otherwise; such ties are counted.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...gpu.device import DeviceArray
from ...noise.philox import DrawKind, uniforms
from ..core import Check, KernelCheck
from ..cuda.ops import CudaOps
from ..host import NumpyOps
from ..rows.compare import BOUNDARY, VOCABULARIES, on_device
from ..rows.contract import Sampling
from ..unmask.compare import SAMPLINGS
from . import DRAFTS
from .contract import DraftOps, Drafts, DraftSpec, Verified

CACHE_ROWS, ROW = 40, (1, 6)
_SEED = 2**40 + 9


@dataclass
class DraftPair:
    """One text on each backend, in the same state. V - 1 is the mask, V - 2 padding, 0 a stop."""

    cuda: CudaOps
    forms: tuple[DraftOps, DraftOps]
    """On the device, in NumPy."""
    device: Drafts
    host: Drafts
    caches: tuple[DeviceArray, np.ndarray]

    @classmethod
    def make(
        cls, cuda: CudaOps, *, sampling: Sampling, beta: float = 1.0, block: int, vocab: int
    ) -> DraftPair:
        """Makes both, behind a text of seven ids of which six are cached."""
        spec = DraftSpec(
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
        forms = cuda.bind(DRAFTS), NumpyOps().bind(DRAFTS)
        device, host = (form.drafts(spec) for form in forms)
        cache = np.zeros((CACHE_ROWS, *ROW), np.float32)
        for form, drafts in zip(forms, (device, host), strict=True):
            form.begin_drafts(drafts, start=6, position=6)
        return cls(cuda, forms, device, host, (on_device(cuda, cache), cache))

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
        found = self._run(self.device, given, num_rows, kv_new)
        wanted = self._run(host, logits, num_rows, kv_new)
        drafts = self.forms[0].draft_ids(self.device)
        decisions, ties, faults = len(wanted.ids) + host.block - 1, 0, []
        if found != wanted or drafts != self.forms[1].draft_ids(host):
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

    def _run(self, drafts: Drafts, logits: Any, num_rows: int, kv_new: np.ndarray) -> Verified:
        """What an update rule does with a run that has its own head."""
        on_host = drafts is self.host
        ops: Any = NumpyOps() if on_host else self.cuda
        form = self.forms[on_host]
        block, cache = drafts.block, self.caches[on_host]
        masks = ops.rows(logits, num_rows, logits.shape[1] - num_rows)
        stride = block if num_rows > 1 else 1
        form.verify(ops.rows(logits, 0, num_rows), drafts, first=masks, stride=stride)
        values = kv_new.astype(np.float32)
        source = values if on_host else on_device(self.cuda, values)
        form.append_kept(cache, source, drafts)
        form.propose(masks, drafts)
        return form.verified(drafts)

    def _state_faults(self, masks: np.ndarray) -> list[str]:
        """Compares what stays on the device; `masks` (block, vocab) are the proposal's logits."""
        cuda, host, memory = self.cuda, self.host, self.device.memory
        state = cuda.device.download(memory.state)[0]
        start = int(cuda.to_host(self.device.start)[0])
        faults = []
        here = (start, int(state["position"]), int(state["step"]))
        if here != (int(host.start[0]), host.position, host.step):
            faults.append(f"the device stands at {here}")
        if not np.array_equal(cuda.to_host(self.caches[0]), self.caches[1]):
            faults.append("the caches differ")
        if host.memory.drafted is not None and host.block > 1:
            found = _logits(cuda.to_host(memory.arrays["logits"]), masks.dtype)
            wanted = masks.copy()
            wanted[:, list(host.spec.banned)] = -np.inf
            if not np.array_equal(found[1:, : masks.shape[1]], wanted[1:]):
                faults.append("other logits are kept of the drafts' distributions")
            shares = cuda.to_host(memory.arrays["shares"])[1:]
            if not np.allclose(shares, host.memory.shares[1:], rtol=1e-5):
                faults.append("the sums of these weights differ")
        return faults

    def _equal(self) -> None:
        """Brings the device to where NumPy is, after a tie."""
        cuda, host, device = self.cuda, self.host, self.device
        self.forms[0].begin_drafts(device, start=int(host.start[0]), position=host.position)
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

    other, form = deepcopy(drafts), NumpyOps().bind(DRAFTS)
    other.memory.uniforms = shifted
    masks = logits[:, num_rows:]
    stride = other.block if num_rows > 1 else 1
    form.verify(logits[:, :num_rows], other, first=masks, stride=stride)
    form.propose(masks, other)
    return form.verified(other), form.draft_ids(other)


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
    block, vocab = drafts.block, drafts.spec.vocab_size
    about = np.random.default_rng(5).normal(size=(64, vocab)) * 2
    first = np.arange(num_rows) + 1
    masks = first[:, None] + np.arange(block) if num_rows > 1 else 1 + np.arange(block)
    positions = drafts.position + np.concatenate([first, masks.reshape(-1)])
    logits = about[positions % 64]
    logits = logits + np.random.default_rng(seed).normal(size=logits.shape) * noise
    return logits[None].astype(dtype)


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


CHECKS: dict[str, Check] = {
    "draft_float32": lambda found, ops: _draft(found, ops, np.float32),
    "draft_float16": lambda found, ops: _draft(found, ops, np.float16),
}
"""Kernels of drafting only mean something together, and are checked so, per type of logits."""
