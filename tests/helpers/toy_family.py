"""A family that only the tests know: the smallest that goes from text to tokens.

A bigram model: one table, one graph without a cache, decoded by taking the most likely next token.

| tensor | shape | dtype | meaning |
|---|---|---|---|
| ids | (1, rows) | int32 | tokens |
| logits | (1, rows, vocab) | float32 | row i predicts the token behind token i |
"""

from functools import partial

import numpy as np
import torch
from dlm_edge.runtime.bundle.manifest import GraphSpec
from dlm_edge.runtime.engines.base import Engine, EngineSet
from dlm_edge.runtime.families.base import Request, Span, UpdateRule, WindowSize
from dlm_edge.train.families.base import ExportGraph, Family, GraphTensor, LossOutput
from dlm_edge.train.families.shapes import canvas_shapes
from torch import nn


class ToyModel(nn.Module):
    """Logits of the next token by a table lookup: (B, L) ids to (B, L, V)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


class ToyGraph(nn.Module):
    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(ids),)


class Toy(Family):
    """The desktop's half."""

    name = "toy"
    logit_shift = 1

    def make_config(self, options):
        assert options["vocab_size"] > options["eos_token_id"]
        model = {"vocab_size": options["vocab_size"], "context": options["context"]}
        ids = {"eos_token_id": options["eos_token_id"], "mask_token_id": None, "pad_token_id": None}
        rest = {"noise_schedule": {}, "block_sizes": [1], "objective": {}}
        return {
            "family": self.name,
            "model": model,
            **ids,
            **rest,
            "vocab_size": model["vocab_size"],
        }

    def make_model(self, config):
        return ToyModel(config["vocab_size"])

    def loss(self, model, batch, generator, config, *, shard=(0, 1)):
        del generator, config, shard
        nats = self._nats(model, batch.ids)
        return LossOutput(loss=nats.mean(), num_tokens=nats.numel())

    @torch.no_grad()
    def eval_loss(self, model, batch, config, *, seed):
        return {"toy": self._nats(model, batch.ids).double().sum(dim=1)}

    def graphs(self, model, config):
        ids = GraphTensor(name="ids", dtype="int32", shape=(1, "rows"), role="canvas")
        shape = (1, "rows", config["vocab_size"])
        logits = GraphTensor(name="logits", dtype="float32", shape=shape, role="logits")
        graph = ToyGraph(model).eval()
        shapes = partial(
            canvas_shapes, trained=config["block_sizes"], max_position=config["model"]["context"]
        )
        return (
            ExportGraph(
                name="guess", module=graph, inputs=(ids,), outputs=(logits,), shapes=shapes
            ),
        )

    def _nats(self, model, ids):
        logits = model(ids[:, :-1])
        return nn.functional.cross_entropy(logits.mT, ids[:, 1:].long(), reduction="none")


class ToyRule:
    """The device's half: one request. Takes the most likely token, one per run."""

    ended = False
    approximate = False

    def __init__(self, engines: EngineSet, ops, request: Request) -> None:
        self._ops, self._request = ops, request
        self._ids = list(request.prompt_ids)
        self._spec = engines.specs[0]

    @property
    def done(self) -> bool:
        return len(self._ids) == self.num_given + self._request.max_tokens

    @property
    def num_given(self) -> int:
        return len(self._request.prompt_ids)

    @property
    def tokens(self) -> np.ndarray:
        return np.array(self._ids, np.int32)

    @property
    def block_size(self) -> None:
        return None

    def next_run(self) -> GraphSpec:
        return self._spec

    def feed(self, engine: Engine) -> None:
        self._ops.assign(engine.inputs["ids"], np.full(self._spec.rows, self._ids[-1], np.int32))

    def update(self, engine: Engine) -> list[Span]:
        token = int(self._ops.to_host(engine.outputs["logits"])[0, 0].argmax())
        self._ids.append(token)
        return [Span(position=len(self._ids) - 1, token_ids=(token,), committed=True)]


class ToyDevice:
    """The device's half: what the table lists."""

    name = "toy"
    exact = True

    def start(self, model, request) -> UpdateRule:
        return ToyRule(model.engines, model.ops, request)

    def blocks(self, manifest, specs):
        return {}

    def positions(self, manifest, specs, settings):
        return manifest.max_position

    def runs(self, manifest, specs, *, block, positions, tokens_per_run):
        yield specs[0], positions / tokens_per_run

    def text_rows(self, spec):
        return 1

    def windows(self, manifest, specs, block_size):
        return WindowSize(1, manifest.max_position)

    def bound(self, model, windows, *, seed, samples, block_size=None):
        ops, spec = model.ops, model.specs[0]
        engine = model.engines.engine(spec)
        for window in windows:
            nats = np.zeros(len(window))
            for position in range(1, len(window)):
                ops.assign(engine.inputs["ids"], np.full(spec.rows, window[position - 1], np.int32))
                engine.run()
                row = np.float64(ops.to_host(engine.outputs["logits"])[0, 0])
                nats[position] = np.logaddexp.reduce(row) - row[window[position]]
            yield np.repeat(nats[None], len(samples), axis=0)
