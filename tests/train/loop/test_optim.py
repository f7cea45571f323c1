from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.loop.optim import (
    Ema,
    Muon,
    lr_factor,
    make_optimizer,
    orthogonal,
    set_lr,
)
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.embed(ids)))


def build(name: str, model: nn.Module, **changes):
    values = {"lr": 0.1, "adamw_lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1, **changes}
    return make_optimizer(model, name, **values)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        model(torch.tensor([step % 5])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = Net()
    groups = build("muon", model).param_groups
    by_name = {
        group["algorithm"]: {id(p) for g in groups if g["algorithm"] == group["algorithm"]
                             for p in g["params"]}
        for group in groups
    }  # fmt: skip
    assert by_name["muon"] == {id(model.hidden.weight)}
    rest = {id(model.embed.weight), id(model.head.weight), id(model.hidden.bias)}
    assert by_name["adamw"] == rest


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8)])
def test_an_orthogonal_step_has_singular_values_near_one_and_is_float32_on_a_cpu(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    before = matrix.clone()
    found = orthogonal(matrix)
    assert torch.equal(matrix, before)
    assert found.dtype == torch.float32
    sizes = torch.linalg.svdvals(found)
    assert 0.5 < sizes.min() <= sizes.max() < 1.5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has none")
def test_muon_steps_as_torchs_own_does_but_for_bfloat16():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(16, 8))
    theirs = nn.Parameter(ours.detach().clone())
    one = Muon([ours], lr=0.1, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(16, 8)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_falls_on_matrices_only(name: str):
    for group in build(name, Net()).param_groups:
        is_matrix = all(p.ndim == 2 for p in group["params"])
        assert (group["weight_decay"] > 0) == is_matrix


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_saved_state_continues_to_equal_weights(name: str):
    torch.manual_seed(0)
    model = Net()
    optimizer = build(name, model)
    train(model, optimizer, 3)
    other = Net()
    other.load_state_dict(model.state_dict())
    copy = build(name, other)
    copy.load_state_dict(deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3)
    train(other, copy, 3)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_every_parameter_moves():
    model = Net()
    before = [p.clone() for p in model.parameters()]
    train(model, build("muon", model), 5)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match="muon, adamw"):
        build("sgd", Net())


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    factors = [lr_factor(s, s / 100, warmup_steps=10, min_ratio=0.1) for s in range(101)]
    assert factors[0] == pytest.approx(1 / 11, rel=0.01)
    assert factors[:10] == sorted(factors[:10])
    assert factors[12:] == sorted(factors[12:], reverse=True)
    assert factors[-1] == pytest.approx(0.1)
    few = [lr_factor(s, s / 9, warmup_steps=100, min_ratio=0.1) for s in range(9)]
    assert max(few) > 0.9
    assert lr_factor(55, 0.5, warmup_steps=0, min_ratio=0.1) == pytest.approx(0.55)


def test_every_group_keeps_its_own_peak():
    optimizer = build("muon", Net())
    set_lr(optimizer, 0.5)
    assert {(g["algorithm"], g["lr"]) for g in optimizer.param_groups} == {
        ("muon", 0.05),
        ("adamw", 0.005),
    }


def test_the_average_lags_behind_and_is_swapped_in_and_out():
    model = Net()
    ema = Ema(model.parameters(), 0.5)
    start = model.hidden.weight.detach().clone()
    with torch.no_grad():
        model.hidden.weight.add_(1.0)
    ema.update(1000)
    with ema.applied():
        assert torch.allclose(model.hidden.weight, start + 0.5)
    assert torch.allclose(model.hidden.weight, start + 1.0)


def test_the_decay_of_the_average_warms_up():
    model = Net()
    ema = Ema(model.parameters(), 0.9999)
    with torch.no_grad():
        model.hidden.weight.add_(1.0)
    ema.update(0)
    with ema.applied():
        averaged = model.hidden.weight.detach().clone()
    assert torch.allclose(averaged, model.hidden.weight - 0.1)
