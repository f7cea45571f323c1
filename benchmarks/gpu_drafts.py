"""A step over drafts on a GPU: what it takes, and each of its kernels against a copy of its input.

Logits are random, and those that drafts come from agree with those that verify them as a way wants
it: `kept` by being the same, `rejected` by ruling the draft out. Part of `gpu_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..runtime.families.tidar.rules import DraftVerify
from ..runtime.gpu.device import DeviceArray
from ..runtime.ops.cuda.ops import CudaOps
from ..runtime.ops.drafts import DRAFTS
from ..runtime.ops.drafts.contract import Drafts, DraftSpec
from ..runtime.ops.drafts.device import CudaDrafts
from .gpu_model import eager_draft_rule, half_module, half_spec
from .gpu_place import Place

DRAFT_BLOCK = 8
"""Drafts of a step."""
WAYS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "top-p": {"temperature": 1.0, "top_p": 0.9},
    "mixed": {"temperature": 1.0, "beta": 0.5},
}
"""Settings that kernels differ by."""
NO_LOGIT = -6e4
"""Finite in float16, and no token of it is ever drawn."""


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Gives random logits, float16."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(np.float16)


class DraftBench:
    """Steps over drafts of one size on one GPU."""

    def __init__(self, size: Mapping[str, int], place: Place, ops: CudaOps) -> None:
        """Takes a size of `gpu_step`, of which the vocabulary counts, and model and context."""
        self._size, self._place, self._ops = size, place, ops
        self._vocab, self._device = size["vocab"], place.device
        drafting = ops.bind(DRAFTS)
        assert isinstance(drafting, CudaDrafts)
        self._drafting = drafting

    def drafts(self, block: int, **settings: Any) -> Drafts:
        """Gives drafts of a text that has one token."""
        chosen = DraftVerify.from_options(settings)
        spec = DraftSpec(
            block=block,
            vocab_size=self._vocab,
            sampling=chosen.sampling,
            beta=chosen.beta,
            seed=0,
            sample_index=0,
            mask_token_id=1,
            stops=(0,),
            banned=(1,),
        )
        drafts = self._drafting.drafts(spec)
        self._drafting.begin_drafts(drafts, start=0, position=0)
        return drafts

    def _upload(self, values: np.ndarray) -> DeviceArray:
        array = self._device.empty(values.shape, values.dtype)
        self._device.upload(array, values)
        return array

    def step(self) -> dict[str, float]:
        """Times a step's run, what follows it, and the same rule in PyTorch: in milliseconds.

        The run is that of the exported module over B (1 + B) rows, which stands for a drafting
        model's.
        """
        block, ops, drafting = DRAFT_BLOCK, self._ops, self._drafting
        rows_of_run = block * (1 + block)
        context = -(-self._size["context"] // rows_of_run) * rows_of_run  # in whole blocks
        size = {**self._size, "block": rows_of_run, "context": context}
        module = half_module(size, self._place.kind)
        engine = self._place.engine(module, half_spec(size, module))
        drafts = self.drafts(block, temperature=1.0)
        logits = self._upload(normal((1, rows_of_run, self._vocab), 0))
        rows, masks = ops.rows(logits, 0, block), ops.rows(logits, block, block * block)
        kv, kv_new = engine.inputs["kv"], engine.outputs["kv_new"]

        def begin() -> None:
            drafting.begin_drafts(drafts, start=0, position=0)

        def update() -> None:
            begin()
            drafting.verify(rows, drafts)
            drafting.append_kept(kv, kv_new, drafts)
            drafting.propose(masks, drafts)

        drafting.propose(ops.rows(masks, 0, block), drafts)  # so that there is something to verify
        times = {
            "drafts: engine": self._place.captured_ms(engine.run),
            "drafts: begin": self._place.captured_ms(begin),
            "drafts: update": self._place.captured_ms(update),
        }
        return times | self._peers(block)

    def _peers(self, block: int) -> dict[str, float]:
        kind, shape = self._place.kind, (block, self._vocab)
        rows = torch.randn(*shape, device=kind, dtype=torch.float16)
        masks = torch.randn(block, *shape, device=kind, dtype=torch.float16)
        drafted = torch.softmax(torch.randn(*shape, device=kind), dim=-1)
        ids = torch.multinomial(drafted, 1)[:, 0]
        return self._place.peers_ms("draft rule", eager_draft_rule, rows, masks, drafted, ids)

    def bandwidth(self, what: str, rows: int) -> Iterator[dict[str, Any]]:
        """Times each kernel against a device copy of the logits that it verifies or drafts from.

        Args:
            what: The input's name.
            rows: B, of float16 logits.
        """
        shape = (1, rows, self._vocab)
        values = normal(shape, 1)
        masks, target = self._upload(values), self._device.empty(shape, np.float16)
        repeats = None if what == "step" else 3
        copy = self._place.captured_ms(lambda: self._device.copy(target, masks), repeats)
        for kernel, enqueue, _ in self.kernels(masks, values):
            took = self._place.captured_ms(enqueue, repeats)
            yield {
                "input": what, "kernel": kernel, "mib": masks.nbytes / 2**20, "ms": took,
                "copy_ms": copy, "ratio": took / copy,
            }  # fmt: skip

    def kernels(
        self, masks: DeviceArray, values: np.ndarray
    ) -> Iterator[tuple[str, Callable[[], None], Drafts]]:
        """Gives each kernel in each way, once what it needs is in place; to be called at once.

        Args:
            masks: (1, B, vocab) float16: a proposal's logits.
            values: The same on the host.
        """
        drafting, block = self._drafting, masks.shape[1]
        same = np.roll(values, -1, axis=1)  # row i is about draft i + 1
        for way, settings in WAYS.items():
            drafts = self.drafts(block, **settings)
            if way != "mixed":  # which is of `verify` alone
                yield f"propose, {way}", lambda: drafting.propose(masks, drafts), drafts  # noqa: B023
            drafting.propose(masks, drafts)
            other = same.copy()
            other[0, np.arange(block - 1), np.array(drafting.draft_ids(drafts)[1:])] = NO_LOGIT
            kept, rejected = self._upload(same), self._upload(other)
            both = {f"verify, {way}, kept": kept, f"verify, {way}, rejected": rejected}
            rows_by_name = {
                "greedy": {"verify, greedy": kept},
                "mixed": {"verify, mixed, rejected": rejected},
            }.get(way, both)
            for name, rows in rows_by_name.items():
                yield name, lambda: drafting.launch_verify(rows, drafts, first=rejected), drafts  # noqa: B023
