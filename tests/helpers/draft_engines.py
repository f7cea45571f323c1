"""A random transformer in NumPy behind the graphs of `tidar`, for decoding without an exporter.

One forward, `Model.logits`, is given everything at once (ids, positions, who sees whom), and has no
cache: slow references use it as it is, the engines put a cache in front of it. Buffers are shared
by role and poisoned before each run, so that outputs read too late are found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dlm_edge.runtime.bundle.manifest import GraphKey, GraphSpec, Manifest, TensorSpec
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.families.tidar.layout import draft_rows
from dlm_edge.runtime.generate import Generation, generate
from manifests import plain_manifest
from rules import decoding

HEADS, WIDTH, LAYERS = 2, 4, 2
DIM = HEADS * WIDTH
CACHE = (1, LAYERS, 2, HEADS, WIDTH)


class Model:
    """Attention and a nonlinearity per layer, rotary positions, float64.

    `agreement` adds logits that depend on the position alone, whether it is read behind a token or
    at a mask, so that more drafts are accepted.
    """

    def __init__(self, vocab: int, seed: int = 0, *, agreement: float = 0.0, scale: float = 3.0):
        rng = np.random.default_rng(seed)
        self.vocab, self.mask = vocab, vocab - 1
        self._embed = rng.normal(size=(vocab, DIM))
        self._qkv = rng.normal(size=(LAYERS, DIM, 3 * DIM)) / DIM**0.5
        self._out = rng.normal(size=(LAYERS, DIM, DIM)) / DIM**0.5
        self._head = rng.normal(size=(DIM, vocab)) * scale / DIM**0.5
        self._common = rng.normal(size=(4096, DIM)) * agreement
        self._frequency = 1.0 / 10.0 ** np.arange(WIDTH // 2)

    def _turn(self, x, positions):
        angle = positions[:, None, None] * self._frequency
        even, odd = x[..., ::2], x[..., 1::2]
        turned = np.stack(
            [even * np.cos(angle) - odd * np.sin(angle), odd * np.cos(angle) + even * np.sin(angle)]
        )
        return np.moveaxis(turned, 0, -1).reshape(x.shape)

    def run(self, ids, positions, visible, kv=None):
        """Gives hidden rows (n, DIM) and own keys and values (n, *CACHE).

        `visible` is (n, m + n) where `kv` holds m rows.
        """
        x = self._embed[ids]
        kept = np.zeros((len(ids), *CACHE))
        for layer in range(LAYERS):
            normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6)
            q, k, v = (normed @ self._qkv[layer]).reshape(len(ids), 3, HEADS, WIDTH).swapaxes(0, 1)
            q, k = self._turn(q, positions), self._turn(k, positions)
            kept[:, 0, layer, 0], kept[:, 0, layer, 1] = k, v
            if kv is not None:
                k = np.concatenate([kv[:, 0, layer, 0], k])
                v = np.concatenate([kv[:, 0, layer, 1], v])
            scores = np.einsum("ihd,jhd->hij", q, k) / WIDTH**0.5
            scores[:, ~visible.astype(bool)] = -np.inf
            weights = np.exp(scores - scores.max(axis=2, keepdims=True))
            weights /= weights.sum(axis=2, keepdims=True)
            x = x + np.einsum("hij,jhd->ihd", weights, v).reshape(len(ids), DIM) @ self._out[layer]
            x = x + np.tanh(x)
        predicted = positions + (ids != self.mask)
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True)) + self._common[predicted], kept

    def head(self, hidden):
        return hidden @ self._head

    def logits(self, ids, positions, visible):
        """Gives (n, vocab) logits of a run that has everything in itself."""
        return self.head(self.run(np.asarray(ids), np.asarray(positions), visible)[0])

    def next_row(self, ids):
        """Gives the causal logits behind a text: (vocab,)."""
        rows = len(ids)
        return self.logits(ids, np.arange(rows), np.tri(rows))[-1]


def step_spec(
    block: int | None, context: int, vocab: int, *, split: bool, logits="float32"
) -> GraphSpec:
    """One shape that drafts `block` tokens; None: one row, token by token."""
    rows = 1 if block is None else draft_rows(block)
    cells = (
        ("ids", "int32", (1, rows), "canvas"),
        ("start", "int32", (1,), "start"),
        ("offsets", "int32", (1, rows), "offsets"),
        ("visible", "float32", (1, rows, rows), "visible"),
        ("kv", "float32", (context, *CACHE), "kv"),
    )
    found = (
        ("hidden", "float32", (1, rows, DIM), "hidden")
        if split
        else ("logits", logits, (1, rows, vocab), "logits")
    )
    return _spec(
        "step",
        {"batch": 1, "rows": rows, "context": context},
        "step" if block is None else "draft",
        block,
        cells,
        (found, ("kv_new", "float32", (rows, *CACHE), "kv_new")),
    )


def head_spec(rows: int, vocab: int, *, logits="float32") -> GraphSpec:
    return _spec(
        "head", {"batch": 1, "rows": rows}, "head", None,
        (("rows", "float32", (1, rows, DIM), "hidden_rows"),),
        (("logits", logits, (1, rows, vocab), "logits"),),
    )  # fmt: skip


def _spec(name, dims, purpose, block, inputs, outputs) -> GraphSpec:
    def tensors(cells):
        return tuple(
            TensorSpec(name=n, dtype=d, shape=s, role=r, lifetime="request" if r == "kv" else "run")
            for n, d, s, r in cells
        )

    return GraphSpec(
        name=name, file=f"graphs/{name}.onnx", dims=dims, purpose=purpose, block=block,
        precision="fp32", inputs=tensors(inputs), outputs=tensors(outputs),
    )  # fmt: skip


class DraftEngine:
    def __init__(self, owner: DraftEngines, spec: GraphSpec) -> None:
        self.spec, self._owner = spec, owner
        self.inputs: dict[str, Any] = {
            t.name: owner.kv[: spec.context]
            if t.role == "kv"
            else np.full(t.shape, -7, t.dtype)  # nothing that was not written is right
            for t in spec.inputs
        }
        self.outputs = {
            t.name: owner.arena(t.role, t.dtype)[: int(np.prod(t.shape))].reshape(t.shape)
            for t in spec.outputs
        }

    def run(self) -> None:
        model, owner = self._owner.model, self._owner
        for tensor in self.spec.outputs:
            owner.arena(tensor.role, tensor.dtype)[:] = np.nan
        if self.spec.name == "head":
            owner.runs.append(("head", self.spec.rows, 0, 0))
            self.outputs["logits"][0] = model.head(self.inputs["rows"][0].astype(np.float64))
            return
        start = int(self.inputs["start"][0])
        assert 0 <= start <= self.spec.context
        owner.runs.append(("step", self.spec.rows, self.spec.context, start))
        ids, offsets = self.inputs["ids"][0], self.inputs["offsets"][0]
        own = self.inputs["visible"][0]
        if not own.any():  # a slot of a batch whose text waits
            own = np.eye(len(own))
        assert set(np.unique(own)) <= {0.0, 1.0}
        visible = np.concatenate([np.ones((len(ids), start)), own], axis=1)
        hidden, kept = model.run(ids, start + offsets, visible, self.inputs["kv"][:start])
        self.outputs["kv_new"][...] = kept
        if "hidden" in self.outputs:
            self.outputs["hidden"][0] = hidden
        else:
            self.outputs["logits"][0] = model.head(hidden)


class DraftEngines:
    """All graphs of one model; `split` leaves the head to a graph of its own."""

    name = "numpy"
    reason = "a test"
    threads = 1
    device = None

    def __init__(
        self,
        model: Model,
        blocks: Sequence[int],
        contexts: Sequence[int] = (64, 512),
        *,
        split: bool = False,
        logits: str = "float32",
    ) -> None:
        self.model = model
        self.specs = tuple(
            step_spec(block, context, model.vocab, split=split, logits=logits)
            for block in (None, *blocks)
            for context in contexts
        )
        if split:
            self.specs += tuple(head_spec(b, model.vocab, logits=logits) for b in (1, *blocks))
        self.kv = np.full((max(contexts), *CACHE), 1e6, np.float32)  # rows nobody stored
        self.runs: list[tuple[str, int, int, int]] = []
        """(graph, rows, context, start) of every run."""
        self._arenas: dict[str, np.ndarray] = {}
        self._engines: dict[GraphKey, DraftEngine] = {}

    def arena(self, role: str, dtype: str) -> np.ndarray:
        if role not in self._arenas:
            size = max(
                int(np.prod(t.shape)) for spec in self.specs for t in spec.outputs if t.role == role
            )
            self._arenas[role] = np.zeros(size, dtype)
        return self._arenas[role]

    def engine(self, spec: GraphSpec) -> DraftEngine:
        if spec.key not in self._engines:
            assert spec in self.specs
            self._engines[spec.key] = DraftEngine(self, spec)
        return self._engines[spec.key]

    def close(self) -> None:
        self._engines.clear()


def draft_manifest(engines: DraftEngines, **fields: Any) -> Manifest:
    """Vocabulary: 0 is end of text, V - 1 the mask, V - 2 padding."""
    vocab = engines.model.vocab
    own: dict[str, Any] = {
        "family": "tidar",
        "vocab_size": vocab,
        "mask_token_id": vocab - 1,
        "pad_token_id": vocab - 2,
        "logit_shift": 1,
        "max_position": 512,
        "block_sizes": (2, 3, 4, 8),
        "noise_schedule": {},
        "decoding": {},
    }
    return plain_manifest(engines.specs, **{**own, **fields})


def draft_request(rule="draft_verify", **fields: Any) -> Request:
    """A request; settings of the rule may stand among its fields."""
    names = ("temperature", "top_k", "top_p", "beta", "block_size")
    settings = {name: fields.pop(name) for name in names if name in fields}
    base = {"prompt_ids": (0, 3, 1, 4, 1), "max_tokens": 24, "seed": 5, "sample_index": 1}
    return Request(**{**base, **fields}, settings=decoding(rule=rule, **settings))


def run(engines, asked, **fields):
    return generate(load_model(draft_manifest(engines, **fields), engines), asked)


def observed(engines, asked, **fields):
    """The result, every graph run, and every span."""
    runs, spans = [], []
    generation = Generation(
        load_model(draft_manifest(engines, **fields), engines),
        asked,
        observer=runs.append,
    )
    spans.extend(generation)
    return generation.result, runs, spans


def causal_text(model, prompt, max_tokens, *, banned=(), stops=(0,)):
    """Greedy, from scratch for every token: (ids, whether it ended)."""
    text = list(prompt)
    while len(text) < len(prompt) + max_tokens:
        row = model.next_row(text)
        row[[model.vocab - 1, model.vocab - 2, *banned]] = -np.inf
        token = int(row.argmax())
        if token in stops:
            return text, True
        text.append(token)
    return text, False
