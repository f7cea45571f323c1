"""One canvas on two backends, and what may differ between them.

Tokens are equal except where the uniform lies within 1e-5 of a boundary of the distribution
function; those are counted, and whoever compares bounds their share.
"""

from dataclasses import dataclass

import numpy as np
from dlm_edge.runtime.decoding import RULES
from dlm_edge.runtime.ops.cuda_ops import CudaOps
from dlm_edge.runtime.ops.numpy_ops import NumpyOps
from dlm_edge.runtime.philox import DrawKind, uniforms

MAX_TIE_SHARE = 0.002
HEATS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.5},
    {"temperature": 30.0, "top_k": 1000, "top_p": 0.999},
    {"temperature": 0.01, "top_p": 0.3},
]


@dataclass
class Pair:
    """One canvas on each backend, in the same state."""

    cuda: CudaOps
    canvases: tuple

    @classmethod
    def make(cls, settings, *, block, vocab, cuda, seed=2**40 + 5, **fields):
        canvases = tuple(
            ops.canvas(
                block=block, vocab_size=vocab, settings=settings, seed=seed, sample_index=3,
                mask_token_id=vocab - 1, eos_token_id=0, banned=(vocab - 2, vocab - 1),
                **{"unmask_chance": 1 / np.arange(6, 0, -1), **fields},
            )
            for ops in (cuda, NumpyOps())
        )  # fmt: skip
        return cls(cuda, canvases)

    def begin(self, fixed=(), *, position=17, first=0):
        device, host = self.canvases
        ids = np.full(host.ids.shape[1], host.mask_token_id, np.int32)
        for index, token in fixed:
            ids[index] = token
        for ops, canvas in ((self.cuda, device), (NumpyOps(), host)):
            ops.begin_block(canvas, ids, ids == host.mask_token_id, position=position, first=first)

    def sample(self, logits):
        device, host = self.canvases
        self.cuda.sample(on_device(self.cuda, logits), device)
        NumpyOps().sample(logits, host)

    def both(self, name):
        device, host = self.canvases
        return self.cuda.to_host(getattr(device, name)), getattr(host, name)


def on_device(ops, values):
    array = ops._device.empty(values.shape, values.dtype)
    ops._device.upload(array, values)
    return array


def random_logits(seed, block, vocab, dtype=np.float32, scale=3.0):
    logits = np.random.default_rng(seed).normal(size=(1, block, vocab)) * scale
    logits[..., 0] = -20
    return logits.astype(dtype)


def compare_samples(pair):
    """Returns (rows drawn, rows whose tokens differ at a boundary); anything else fails."""
    settings, host = pair.canvases[1].settings, pair.canvases[1]
    chosen, expected = pair.both("chosen")
    first = RULES[settings.rule].chooses_first
    if first:
        assert np.array_equal(chosen.astype(bool), expected)
    rows = np.flatnonzero(expected if first else host.masked)
    found, wanted = pair.both("candidate")
    same = rows[found[rows] == wanted[rows]]
    for slot, row in enumerate(rows):
        if found[row] != wanted[row]:
            assert not settings.greedy
            assert boundary_distance(pair, slot, row, found[row]) < 1e-5
    for name, error in (("log_prob", 2e-5), ("score", 2e-5)):
        if name == "log_prob" or RULES[settings.rule].score != "none":
            ours, theirs = pair.both(name)
            assert np.allclose(ours[same], theirs[same], rtol=error, atol=error), name
    return len(rows), len(rows) - len(same)


def boundary_distance(pair, slot, row, token):
    """How far a row's uniform lies from the share at which `token` begins or ends."""
    host = pair.canvases[1]
    weights = host.scratch.row.weights[slot].astype(np.float64)
    shares = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    draw = uniforms(
        host.seed, host.sample_index, host.position + row, host.step, DrawKind.TOKEN
    ).item()
    return np.abs(shares[[token, token + 1]] - draw).min()
