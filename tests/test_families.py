"""One contract over every entry of both tables of families, and a family that only the tests know.

The toy enters through the two seams alone, and every figure of it has a closed form.
"""

import inspect
import json

import numpy as np
import pytest
import torch
from dlm_edge.export.pack import ExportSettings, export_checkpoint
from dlm_edge.runtime.families import RULES_OF_FAMILY
from dlm_edge.runtime.families import table as device
from dlm_edge.runtime.families.base import DeviceFamily
from dlm_edge.runtime.families.next_token import NextToken
from dlm_edge.runtime.measure.evaluate import evaluate_ids
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.train import families as desktop
from dlm_edge.train.config import TrainConfig
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families.base import Family
from dlm_edge.train.loop.run import train
from safetensors.torch import load_file
from torch import nn
from toy_family import Toy, ToyDevice

CONTEXT = 32
TINY = {"dim": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 24, "context": CONTEXT}
SPECIAL = {"eos_token_id": 0, "pad_token_id": None}


@pytest.fixture
def toy(monkeypatch):
    """Lists the toy in both tables, and touches nothing else."""
    monkeypatch.setitem(desktop.FAMILIES, "toy", Toy())
    monkeypatch.setitem(device.FAMILIES, "toy", ToyDevice())
    monkeypatch.setitem(RULES_OF_FAMILY, "toy", (NextToken,))


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
    assert set(desktop.FAMILIES) == set(device.FAMILIES) == set(RULES_OF_FAMILY)


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
def test_family_has_the_facts_its_protocol_lists(name):
    for protocol, table in ((Family, desktop), (DeviceFamily, device)):
        for fact in protocol.__annotations__:
            assert hasattr(table.FAMILIES[name], fact), fact


@pytest.mark.parametrize("name", listed())
def test_config_read_back_from_json_means_the_same(name):
    family, model, config = make(name)
    assert config["family"] == name
    read = json.loads(json.dumps(config))
    again = family.make_model(read["model"])
    again.load_state_dict(model.state_dict())
    losses = [
        family.loss(m, Batch(ids=ids_of()), torch.Generator().manual_seed(3), c).loss.item()
        for m, c in ((model, config), (again, read))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", listed())
def test_loss_is_finite_repeats_under_equal_generators_and_has_gradients(name):
    family, model, config = make(name)
    losses = [
        family.loss(model, Batch(ids=ids_of()), torch.Generator().manual_seed(3), config)
        for _ in range(2)
    ]
    assert losses[0].loss.item() == losses[1].loss.item()
    assert losses[0].num_tokens == 3 * (CONTEXT - 1)
    losses[0].loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", listed())
def test_shards_of_a_batch_add_up_to_the_batch(name):
    family, model, config = make(name)
    ids = ids_of(4)
    whole = family.loss(model, Batch(ids=ids), torch.Generator().manual_seed(3), config).loss
    halves = [
        family.loss(
            model,
            Batch(ids=ids[2 * i : 2 * i + 2]),
            torch.Generator().manual_seed(3),
            config,
            shard=(i, 2),
        ).loss
        for i in range(2)
    ]
    assert torch.allclose(whole, sum(halves) / 2, rtol=1e-5)


@pytest.mark.parametrize("name", listed())
def test_graphs_name_what_their_modules_take_and_give(name):
    family, model, config = make(name)
    sizes = {"batch": 1, "rows": 4, "context": 8}
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
def test_manifest_says_what_the_config_says(name):
    family, model, config = make(name)
    manifest = family.manifest(config, model, target="host", precision="fp32")
    assert manifest.family == name
    assert manifest.max_position == CONTEXT
    assert manifest.vocab_size == TINY["vocab_size"]
    assert manifest.model["num_parameters"] == sum(p.numel() for p in model.parameters())


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


def test_the_toy_goes_from_text_to_tokens_through_the_two_seams_alone(toy, tmp_path):
    train_toy(tmp_path)
    bundle = tmp_path / "toy.dlm"
    settings = ExportSettings(blocks=(4,), data=tmp_path / "letters.txt")
    export_checkpoint(tmp_path / "checkpoint", bundle, settings)
    with Pipeline.load(bundle) as pipeline:
        assert pipeline.manifest.family == "toy"
        assert {graph.name for graph in pipeline.manifest.graphs} == {"guess"}
        result = pipeline.generate("ab", max_tokens=7).result()
        assert result.text == "cabcabc"
        assert result.nfe == 7
        ids = np.array(pipeline.tokenizer.encode("abcabca"), np.int32)
        figures = evaluate_ids(pipeline.model, ids)
    table = load_file(tmp_path / "checkpoint" / "model.safetensors")["table.weight"]
    rows = torch.log_softmax(table, dim=1)[ids[:-1]]
    expected = -rows.gather(1, torch.tensor(ids[1:, None], dtype=torch.long)).mean().item()
    assert figures.nats_per_token == pytest.approx(expected, rel=1e-5)
