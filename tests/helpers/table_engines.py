"""Exact engines in NumPy: any function of (prefix, block) made an EngineSet, KV cache included.

The cache holds the token ids themselves, so that a rule which stores, skips or misplaces a row is
caught: the function is only ever given what the cache says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from dlm_edge.runtime.bundle.manifest import GraphKey, GraphSpec, Manifest
from manifests import denoise_spec, plain_manifest

Denoiser = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(prefix ids, block ids) → (block, vocab) float logits."""


def make_spec(
    rows: int, context: int, vocab_size: int, timed: bool, splits: bool = False
) -> GraphSpec:
    return denoise_spec(
        rows, context, vocab=vocab_size, cache=(1, 1, 2, 1, 1), timed=timed, splits=splits
    )


class TableEngine:
    def __init__(self, owner: TableEngines, spec: GraphSpec) -> None:
        self.spec = spec
        self._owner = owner
        self.inputs: dict[str, Any] = {
            "ids": np.zeros((1, spec.rows), np.int32),
            "start": np.zeros(1, np.int32),
            "kv": owner.kv[: spec.context],
        }
        if any(tensor.role == "time" for tensor in spec.inputs):
            self.inputs["time"] = np.full((1, spec.rows), np.nan, np.float32)
        if any(tensor.role == "split" for tensor in spec.inputs):
            self.inputs["split"] = np.full(1, -1, np.int32)
        self.outputs: dict[str, Any] = {t.name: np.zeros(t.shape, np.float32) for t in spec.outputs}

    def run(self) -> None:
        start = int(self.inputs["start"][0])
        assert start <= self.spec.context
        prefix = self.inputs["kv"][:start].reshape(start, 2)[:, 0].astype(np.int32)
        block = self.inputs["ids"][0].copy()
        split = int(self.inputs["split"][0]) if "split" in self.inputs else 0
        assert 0 <= split < self.spec.rows
        logits = self.outputs["logits"][0]
        if split:
            logits[:split] = self._owner.denoiser(prefix, block[:split])
        logits[split:] = self._owner.denoiser(
            np.concatenate([prefix, block[:split]]), block[split:]
        )
        self.outputs["kv_new"][...] = block.reshape(-1, 1, 1, 1, 1, 1)
        if "time" in self.inputs:
            self._owner.times.append(self.inputs["time"][0].copy())
        self._owner.runs.append((self.spec.rows, self.spec.context, start, tuple(block.tolist())))


class TableEngines:
    name = "table"
    device = None

    def __init__(
        self,
        denoiser: Denoiser,
        shapes: Sequence[tuple[int, int]],
        vocab_size: int,
        *,
        timed: bool = False,
        splits: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.specs = tuple(make_spec(*shape, vocab_size, timed, splits) for shape in shapes)
        self.times: list[np.ndarray] = []
        largest = max(context for _, context in shapes)
        self.kv = np.full((largest, 1, 1, 2, 1, 1), 1e6, np.float32)  # rows nobody stored
        self.runs: list[tuple[int, int, int, tuple[int, ...]]] = []
        self._engines: dict[GraphKey, TableEngine] = {}

    def engine(self, spec: GraphSpec) -> TableEngine:
        if spec.key not in self._engines:
            assert spec in self.specs
            self._engines[spec.key] = TableEngine(self, spec)
        return self._engines[spec.key]

    def close(self) -> None:
        self._engines.clear()


def make_manifest(engines: TableEngines, *, family: str = "mdlm", **fields: Any) -> Manifest:
    """Vocabulary: 0 is end of text, V - 1 the mask (mdlm), V - 2 padding."""
    vocab_size = engines.specs[0].tensor("logits").shape[-1]
    own: dict[str, Any] = {
        "family": family,
        "mask_token_id": vocab_size - 1 if family == "mdlm" else None,
        "pad_token_id": vocab_size - 2,
        "logit_shift": 0 if family == "mdlm" else 1,
        "noise_schedule": {"name": "loglinear", "eps": 1e-3},
        "decoding": {"rule": "threshold" if family == "mdlm" else "next_token"},
    }
    return plain_manifest(engines.specs, **{**own, **fields})


def hashed(vocab_size: int, *, scale: float = 2.0, causal: bool = False) -> Denoiser:
    """Logits that depend, chaotically, on every token a position may see, and its position."""
    table = np.random.default_rng(7).normal(size=(997, vocab_size)).astype(np.float32) * scale

    def denoiser(prefix: np.ndarray, block: np.ndarray) -> np.ndarray:
        tokens = np.concatenate([prefix, block]).astype(np.int64)
        terms = (tokens + 1) * (np.arange(len(tokens)) * 7919 + 104729) % 1000003
        position = np.arange(len(prefix), len(tokens))
        seen = np.cumsum(terms)[position] if causal else np.full(len(block), terms.sum())
        return table[(seen + position * 31) % 997]

    return denoiser


def joint_model(joint: np.ndarray, mask: int, vocab_size: int) -> Denoiser:
    """The exact denoiser of a distribution over whole texts.

    Args:
        joint: (n,) * L probabilities of texts of L ids below n.
        mask: The mask id.
        vocab_size: At least n; other ids have logit -30 (never exactly 0, as in a real model).
    """
    num_ids, length = joint.shape[0], joint.ndim

    def denoiser(prefix: np.ndarray, block: np.ndarray) -> np.ndarray:
        known = np.full(length, -1)
        tokens = np.concatenate([prefix, block])[:length]
        known[: len(tokens)] = np.where(tokens == mask, -1, tokens)
        masses = np.zeros((length, num_ids))
        for text in product(range(num_ids), repeat=length):
            if all(k in (-1, t) for k, t in zip(known, text, strict=True)):
                for position, token in enumerate(text):
                    masses[position, token] += joint[text]
        out = np.full((len(block), vocab_size), -30.0)
        with np.errstate(divide="ignore"):
            rows = np.log(masses / masses.sum(axis=1, keepdims=True))[len(prefix) : len(tokens)]
        out[: len(rows), :num_ids] = np.maximum(rows, -60.0)
        return out

    return denoiser
