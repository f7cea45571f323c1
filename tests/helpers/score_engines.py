"""Exact scores in NumPy: any function of (canvas, sigma) as an EngineSet, and a joint's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from dlm_edge.runtime.bundle.manifest import GraphSpec, Manifest
from manifests import score_spec

Score = Callable[[np.ndarray, float], np.ndarray]
"""(ids (block,), sigma) → (block, vocab) log-scores."""


class ScoreEngine:
    def __init__(self, owner: ScoreEngines, spec: GraphSpec) -> None:
        self.spec = spec
        self._owner = owner
        self.inputs: dict[str, Any] = {
            "ids": np.zeros((1, spec.rows), np.int32),
            "sigma": np.full(1, np.nan, np.float32),
        }
        self.outputs = {"log_score": np.zeros(spec.outputs[0].shape, np.float32)}

    def run(self) -> None:
        ids, sigma = self.inputs["ids"][0].copy(), float(self.inputs["sigma"][0])
        self._owner.runs.append((self.spec.rows, sigma, tuple(ids.tolist())))
        self.outputs["log_score"][0] = self._owner.score(ids, sigma)


class ScoreEngines:
    name = "table"
    reason = "a test"
    threads = 1
    device = None

    def __init__(self, score: Score, lengths: Sequence[int], vocab_size: int) -> None:
        self.score = score
        self.specs = tuple(score_spec(length, vocab_size) for length in lengths)
        self.runs: list[tuple[int, float, tuple[int, ...]]] = []
        self._engines = {spec.key: ScoreEngine(self, spec) for spec in self.specs}

    def engine(self, spec: GraphSpec) -> ScoreEngine:
        return self._engines[spec.key]

    def close(self) -> None:
        self._engines.clear()


def score_manifest(engines: ScoreEngines, graph: str, **fields: Any) -> Manifest:
    """Vocabulary: 0 is end of text, V - 1 the mask; no padding."""
    vocab_size = engines.specs[0].outputs[0].shape[-1]
    manifest = Manifest(
        family="sedd",
        model={"graph": graph},
        vocab_size=vocab_size,
        mask_token_id=vocab_size - 1,
        eos_token_id=0,
        pad_token_id=None,
        logit_shift=0,
        max_position=4096,
        block_sizes=tuple(spec.rows for spec in engines.specs),
        noise_schedule={"name": "loglinear", "eps": 1e-3},
        precision="fp32",
        target="cpu",
        graphs=engines.specs,
        decoding={},
        provenance={},
    )
    return replace(manifest, **fields)


def kernel(graph: str, num_states: int, sigma: float) -> np.ndarray:
    """p(x_t = column | x_0 = row): (K, K) for uniform, (K + 1, K + 1) with MASK last for absorb."""
    moved = -np.expm1(-sigma)
    if graph == "uniform":
        return (1 - moved) * np.eye(num_states) + moved / num_states
    out = (1 - moved) * np.eye(num_states + 1)
    out[:, num_states] += moved
    return out


def noised(joint: np.ndarray, graph: str, sigma: float) -> np.ndarray:
    """The distribution of whole texts after noise, over K (or K + 1) tokens per position."""
    matrix = kernel(graph, joint.shape[0], sigma)[: joint.shape[0]]
    for _ in range(joint.ndim):  # each contraction moves its axis to the end: all come round
        joint = np.tensordot(joint, matrix, axes=(0, 0))
    return joint


def joint_score(joint: np.ndarray, graph: str, vocab_size: int) -> Score:
    """The exact log-scores of a joint over positions 1..n; position 0 is given and scores 0.

    Args:
        joint: (K,) * n probabilities; K states 0..K - 1.
        graph: `uniform` or `absorb`, whose MASK is `vocab_size - 1`.
        vocab_size: Columns; those of no state hold 7, which nobody may read.
    """
    num_states, length = joint.shape[0], joint.ndim
    cache: dict[tuple[float, tuple[int, ...]], np.ndarray] = {}

    def score(ids: np.ndarray, sigma: float) -> np.ndarray:
        key = (sigma, tuple(ids.tolist()))
        if key not in cache:
            p = noised(joint, graph, sigma)
            at = [num_states if i == vocab_size - 1 else int(i) for i in ids[1 : 1 + length]]
            out = np.full((len(ids), vocab_size), 7.0)
            for place in range(length):
                line = p[tuple(slice(None) if i == place else at[i] for i in range(length))]
                with np.errstate(divide="ignore"):
                    logs = np.log(line / line[at[place]])
                out[1 + place, :num_states] = np.maximum(logs[:num_states], -80.0)
                out[1 + place, ids[1 + place]] = 0.0
            cache[key] = out
        return cache[key]

    return score


def texts(num_states: int, length: int) -> list[tuple[int, ...]]:
    return list(product(range(num_states), repeat=length))
