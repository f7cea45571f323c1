"""One contract over every entry of both tables of families, and a family that only the tests know.

The toy is a bigram model: one table, one graph without a cache, decoded by taking the most likely
next token. It enters through the two seams alone, and every figure of it has a closed form.
"""

import inspect
import json

import numpy as np
import pytest
import torch
from dlm_edge.runtime import families as device
from dlm_edge.runtime.engines.base import Engine, EngineSet
from dlm_edge.runtime.families.base import DeviceFamily, Request, Span, UpdateRule
from dlm_edge.train import families as desktop
from dlm_edge.train.config import TrainConfig
from dlm_edge.train.families.base import ExportGraph, Family, GraphTensor, LossOutput
from dlm_edge.train.run import train
from torch import nn

CONTEXT = 32
TINY = {"dim": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 24, "context": CONTEXT}
SPECIAL = {"eos_token_id": 0, "pad_token_id": None}


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


class Toy:
    """The desktop's half."""

    name = "toy"

    def make_config(self, options):
        assert options["vocab_size"] > options["eos_token_id"]
        model = {"vocab_size": options["vocab_size"], "context": options["context"]}
        ids = {
            name: options.get(name) for name in ("eos_token_id", "mask_token_id", "pad_token_id")
        }
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

    def loss(self, model, ids, generator, config, *, shard=(0, 1)):
        del generator, config, shard
        nats = self._nats(model, ids)
        return LossOutput(loss=nats.mean(), num_tokens=nats.numel())

    @torch.no_grad()
    def eval_loss(self, model, ids, config, *, seed):
        return {"toy": self._nats(model, ids).double().sum(dim=1)}

    def graphs(self, model, config):
        ids = GraphTensor(name="ids", dtype="int32", shape=(1, "block"), role="canvas")
        shape = (1, "block", config["vocab_size"])
        logits = GraphTensor(name="logits", dtype="float32", shape=shape, role="logits")
        graph = ToyGraph(model).eval()
        return (ExportGraph(name="guess", module=graph, inputs=(ids,), outputs=(logits,)),)

    def manifest_fields(self, config):
        return {
            "mask_token_id": None,
            "eos_token_id": config["eos_token_id"],
            "pad_token_id": None,
            "logit_shift": 1,
            "max_position": config["model"]["context"],
            "block_sizes": (1,),
            "noise_schedule": {},
        }

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

    def next_run(self) -> tuple[str, int, int]:
        return self._spec.name, self._spec.block, self._spec.context

    def feed(self, engine: Engine) -> None:
        self._ops.assign(engine.inputs["ids"], np.full(self._spec.block, self._ids[-1], np.int32))

    def update(self, engine: Engine) -> list[Span]:
        token = int(self._ops.to_host(engine.outputs["logits"])[0, 0].argmax())
        self._ids.append(token)
        return [Span(position=len(self._ids) - 1, token_ids=(token,), committed=True)]


class ToyDevice:
    """The device's half: what the table lists."""

    name = "toy"
    exact = True

    def start(self, manifest, engines, ops, request) -> UpdateRule:
        return ToyRule(engines, ops, request)

    def bound(self, manifest, engines, ops, windows, *, seed, samples, block_size=None):
        spec = engines.specs[0]
        engine = engines.engine(spec.name, spec.block, spec.context)
        for window in windows:
            nats = np.zeros(len(window))
            for position in range(1, len(window)):
                ops.assign(
                    engine.inputs["ids"], np.full(spec.block, window[position - 1], np.int32)
                )
                engine.run()
                row = np.float64(ops.to_host(engine.outputs["logits"])[0, 0])
                nats[position] = np.logaddexp.reduce(row) - row[window[position]]
            yield np.repeat(nats[None], len(samples), axis=0)


@pytest.fixture
def toy(monkeypatch):
    """Lists the toy in both tables, and touches nothing else."""
    monkeypatch.setitem(desktop.FAMILIES, "toy", Toy())
    monkeypatch.setitem(device.FAMILIES, "toy", ToyDevice())


def listed() -> list[str]:
    return sorted(desktop.FAMILIES)


def config_of(name: str) -> dict:
    options = {**TINY, **SPECIAL, "mask_token_id": None if name == "ar" else 1}
    return desktop.FAMILIES[name].make_config(options)


def make(name: str) -> tuple[Family, nn.Module, dict]:
    family, config = desktop.FAMILIES[name], config_of(name)
    torch.manual_seed(0)
    return family, family.make_model(config["model"]), config


def ids_of(batch: int = 3) -> torch.Tensor:
    return torch.randint(2, 24, (batch, CONTEXT), generator=torch.Generator().manual_seed(5))


def test_both_tables_list_the_same_names():
    assert set(desktop.FAMILIES) == set(device.FAMILIES)


@pytest.mark.parametrize("name", listed())
def test_family_stands_under_its_own_name_on_both_sides(name):
    assert desktop.FAMILIES[name].name == device.FAMILIES[name].name == name


@pytest.mark.parametrize("name", listed())
@pytest.mark.parametrize("side", ["desktop", "device"])
def test_family_takes_the_arguments_of_its_protocol(name, side):
    protocol, table = (Family, desktop) if side == "desktop" else (DeviceFamily, device)
    for method, wanted in inspect.getmembers(protocol, inspect.isfunction):
        if not method.startswith("_"):
            own = getattr(type(table.FAMILIES[name]), method)
            assert inspect.signature(own).parameters.keys() == (
                inspect.signature(wanted).parameters.keys()
            ), method


@pytest.mark.parametrize("name", listed())
def test_config_read_back_from_json_means_the_same(name):
    family, model, config = make(name)
    assert config["family"] == name
    read = json.loads(json.dumps(config))
    again = family.make_model(read["model"])
    again.load_state_dict(model.state_dict())
    losses = [
        family.loss(m, ids_of(), torch.Generator().manual_seed(3), c).loss.item()
        for m, c in ((model, config), (again, read))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", listed())
def test_loss_is_finite_repeats_under_equal_generators_and_has_gradients(name):
    family, model, config = make(name)
    losses = [
        family.loss(model, ids_of(), torch.Generator().manual_seed(3), config) for _ in range(2)
    ]
    assert losses[0].loss.item() == losses[1].loss.item()
    assert losses[0].num_tokens == 3 * (CONTEXT - 1)
    losses[0].loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", listed())
def test_shards_of_a_batch_add_up_to_the_batch(name):
    family, model, config = make(name)
    ids = ids_of(4)
    whole = family.loss(model, ids, torch.Generator().manual_seed(3), config).loss
    halves = [
        family.loss(
            model, ids[2 * i : 2 * i + 2], torch.Generator().manual_seed(3), config, shard=(i, 2)
        ).loss
        for i in range(2)
    ]
    assert torch.allclose(whole, sum(halves) / 2, rtol=1e-5)


@pytest.mark.parametrize("name", listed())
def test_graphs_name_what_their_modules_take_and_give(name):
    family, model, config = make(name)
    sizes = {"block": 4, "context": 8}
    for graph in family.graphs(model, config):
        tensors = [
            torch.zeros(
                [sizes[s] if isinstance(s, str) else s for s in tensor.shape],
                dtype=getattr(torch, tensor.dtype),
            )
            for tensor in graph.inputs
        ]
        outputs = graph.module(*tensors)
        assert len(outputs) == len(graph.outputs)
        for tensor, output in zip(graph.outputs, outputs, strict=True):
            assert list(output.shape) == [
                sizes[s] if isinstance(s, str) else s for s in tensor.shape
            ]
            assert output.dtype == getattr(torch, tensor.dtype)


@pytest.mark.parametrize("name", listed())
def test_manifest_fields_are_fields_of_the_manifest(name):
    from dlm_edge.runtime.manifest import Manifest

    family, _, config = make(name)
    known = set(Manifest.__dataclass_fields__)
    assert set(family.manifest_fields(config)) <= known


def test_the_toy_trains_through_the_desktop_seam_alone(toy, tmp_path):
    summary = train_toy(tmp_path)
    # In "abcabc..." the next letter is certain: a bigram table can learn it all.
    assert summary["held_out"]["toy"]["nats_per_token"] < 0.5


def train_toy(folder) -> dict:
    text = folder / "letters.txt"
    text.write_text("<|endoftext|>".join(["abc" * 40] * 30), encoding="utf-8")
    config = TrainConfig(
        family="toy",
        data=str(text),
        out=str(folder / "checkpoint"),
        tokenizer="char",
        context=CONTEXT,
        batch_size=8,
        max_steps=60,
        optimizer="adamw",
        lr=0.2,
        warmup_steps=1,
        ema=0.0,
        eval_rows=8,
        log="none",
        cache_dir=str(folder / "cache"),
    )
    return train(config, quiet=True)
