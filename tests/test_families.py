"""One contract over every entry of both tables of families. `tests/toy` has a family of its own."""

import inspect
import json

import pytest
import torch
from dlm_edge.runtime.families import table as device
from dlm_edge.runtime.families.base import DeviceFamily
from dlm_edge.train import families as desktop
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families.base import Family
from torch import nn

CONTEXT = 32
TINY = {"dim": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 24, "context": CONTEXT}
SPECIAL = {"eos_token_id": 0, "pad_token_id": None}


def listed() -> list[str]:
    return sorted(desktop.FAMILIES)


PROTOCOLS = {"desktop": Family, "device": DeviceFamily}


def family_on(side: str, name: str) -> Family | DeviceFamily:
    return desktop.FAMILIES[name] if side == "desktop" else device.find_family(name)


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
    assert desktop.FAMILIES[name].name == device.find_family(name).name == name


@pytest.mark.parametrize("name", listed())
@pytest.mark.parametrize("side", ["desktop", "device"])
def test_family_takes_the_arguments_of_its_protocol(name, side):
    protocol, family = PROTOCOLS[side], family_on(side, name)
    for method, wanted in inspect.getmembers(protocol, inspect.isfunction):
        if not method.startswith("_"):
            own = getattr(type(family), method)
            assert inspect.signature(own).parameters.keys() == (
                inspect.signature(wanted).parameters.keys()
            ), method


@pytest.mark.parametrize("name", listed())
def test_family_has_the_facts_its_protocol_lists(name):
    for side, protocol in PROTOCOLS.items():
        for fact in protocol.__annotations__:
            assert hasattr(family_on(side, name), fact), fact


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
