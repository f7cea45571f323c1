"""The family sedd in training: noise, loss and bound against closed forms."""

import math

import numpy as np
import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.families.sedd.loss import (
    Noisy,
    absorbed,
    canvas_noise,
    draw,
    position_nats,
    replaced,
    states_of,
)
from dlm_edge.train.nn.score_net import ScoreNet
from torch import nn

VOCAB, EOS, MASK, PAD = 9, 0, 1, 8
K = 7
FAMILY = FAMILIES["sedd"]
BASE = {
    "dim": 16, "num_layers": 1, "num_heads": 1, "vocab_size": VOCAB, "context": 8,
    "eos_token_id": EOS, "mask_token_id": MASK, "pad_token_id": PAD,
}  # fmt: skip


def config_of(graph="absorb", **options):
    return FAMILY.make_config({**BASE, "graph": graph, **options})


class Known(nn.Module):
    """The true score of independent tokens with known chances."""

    def __init__(self, graph: str, chances: torch.Tensor) -> None:
        super().__init__()
        self.graph, self.chances = graph, chances

    def forward(self, ids, sigma, rows=None):
        keep = torch.exp(-sigma.double())[:, None]
        if self.graph == "absorb":
            marginal = keep * self.chances
            marginal[:, MASK] = 1 - keep[:, 0]
        else:
            marginal = keep * self.chances + (1 - keep) / K
        marginal = marginal[:, None].expand(*ids.shape, VOCAB)
        score = (marginal / marginal.gather(-1, ids.long()[..., None])).clamp(min=1e-30).log()
        return score if rows is None else score.flatten(0, 1)[rows]


def chances() -> torch.Tensor:
    values = torch.tensor([0.05, 0.0, 0.3, 0.25, 0.2, 0.1, 0.06, 0.04, 0.0], dtype=torch.float64)
    assert values.sum().item() == pytest.approx(1.0)
    return values


@pytest.mark.parametrize(
    ("graph", "options"),
    [
        ("uniform", {}),
        ("uniform", {"noise_schedule": "loglinear"}),
        ("absorb", {"masking": "count"}),
        ("absorb", {"masking": "independent"}),
        ("absorb", {"masking": "independent", "noise_schedule": "geometric"}),
    ],
)
def test_the_loss_of_the_true_score_is_the_entropy_of_the_text(graph, options):
    config = config_of(graph, **options)
    generator = torch.Generator().manual_seed(0)
    ids = torch.multinomial(chances(), 4000 * 8, replacement=True, generator=generator)
    ids = ids.view(4000, 8)
    model = Known(graph, chances())
    losses = [FAMILY.loss(model, Batch(ids=ids), generator, config) for _ in range(4)]
    exact = -chances()[ids[:, 1:]].log().mean().item()
    mean = np.mean([item.loss.item() for item in losses])
    # loglinear noise stops at sigma = 6.9 (uniform), geometric starts at 1e-4: both 0.2 % or less.
    assert mean == pytest.approx(exact, rel=0.02)
    assert losses[0].num_tokens == 4000 * 7


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_the_held_out_figure_of_the_true_score_is_the_entropy_of_the_text(graph):
    config = config_of(graph, block_sizes="4,full")
    ids = torch.multinomial(
        chances(), 4000 * 8, replacement=True, generator=torch.Generator().manual_seed(1)
    ).view(4000, 8)
    figures = FAMILY.eval_loss(Known(graph, chances()), Batch(ids=ids), config, seed=3)
    exact = -chances()[ids[:, 1:]].log().sum(dim=1).mean().item()
    assert set(figures) == {"4", "full"}
    for nats in figures.values():
        assert nats.shape == (4000,)
        assert nats.mean().item() == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("last", [0.1, 0.3])
def test_a_held_out_figure_counts_what_the_largest_noise_leaves(last):
    """Under the true score the bound is the entropy plus KL(p_1 || uniform), however little noise.

    Both parts in closed form; without the prior term it would fall short by far.
    """
    config = config_of("uniform", noise_schedule="geometric", sigma_max=last)
    ids = torch.multinomial(
        chances(), 4000 * 8, replacement=True, generator=torch.Generator().manual_seed(1)
    ).view(4000, 8)
    model = Known("uniform", chances())
    figures = [
        FAMILY.eval_loss(model, Batch(ids=ids), config, seed=seed)["full"] for seed in range(4)
    ]
    kept = chances()[chances() > 0]
    entropy = -(kept * kept.log()).sum().item()
    noisy = math.exp(-last) * chances()[states_of(config)] - math.expm1(-last) / K
    divergence = (noisy * (K * noisy).log()).sum().item()
    found = torch.stack(figures).mean().item()
    assert found == pytest.approx(7 * (entropy + divergence), abs=0.45)
    assert 7 * divergence > 0.8


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 1.0, 5.0])
def test_losses_are_zero_at_the_true_ratios_of_a_token(sigma):
    level = torch.tensor([sigma], dtype=torch.float64)
    states = torch.tensor([0, 2, 3, 4, 5, 6, 7])
    x0, r = torch.tensor([3]), 1 / math.expm1(sigma)
    true = torch.full((1, VOCAB), -80.0, dtype=torch.float64)
    true[0, 3] = math.log(r)
    true[0, MASK] = 0
    assert absorbed(true, x0, level, states).item() == pytest.approx(0, abs=1e-12 * max(r, 1))
    moved = -math.expm1(-sigma) / K
    row = torch.full((VOCAB,), moved, dtype=torch.float64)
    row[3] += math.exp(-sigma)
    for x in (3, 5):
        score = (row / row[x]).log()[None]
        xt = torch.tensor([x])
        found = replaced(score, xt, x0, level, states).item()
        assert found == pytest.approx(0, abs=1e-11 * float(score.exp().max()))
        wrong = score + 0.1 * torch.randn(score.shape, generator=torch.Generator().manual_seed(1))
        wrong[0, x] = 0
        assert replaced(wrong, xt, x0, level, states).item() > 0


def test_columns_that_are_no_state_change_nothing():
    states = states_of(config_of("uniform"))
    assert states.tolist() == [0, 2, 3, 4, 5, 6, 7]
    score = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    x0, xt = torch.tensor([2, 3, 4, 5]), torch.tensor([2, 5, 4, 6])
    other = score.clone()
    other[:, [MASK, PAD]] = 30.0
    level = torch.full((4,), 0.5)
    assert torch.equal(
        replaced(score, xt, x0, level, states), replaced(other, xt, x0, level, states)
    )
    assert torch.equal(absorbed(score, x0, level, states), absorbed(other, x0, level, states))


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_noise_moves_the_right_share_to_the_right_tokens_and_never_position_0(graph):
    config = config_of(graph)
    ids = torch.full((6000, 8), 3)
    noisy = draw(ids, config, "independent", torch.Generator().manual_seed(0), (0, 1))
    assert (noisy.ids[:, 0] == 3).all()
    keep = torch.exp(-noisy.sigma)[:, None]
    changed = (noisy.ids != 3)[:, 1:].float()
    share = (1 - keep) * (1.0 if graph == "absorb" else (K - 1) / K)
    assert (changed - share).mean().abs().item() < 0.01
    tokens = set(noisy.ids[:, 1:][noisy.ids[:, 1:] != 3].tolist())
    assert tokens == ({MASK} if graph == "absorb" else {0, 2, 4, 5, 6, 7})


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_small_noise_gives_finite_losses_and_gradients(graph):
    config = config_of(graph)
    torch.manual_seed(0)
    model = FAMILY.make_model(config["model"])
    ids = torch.randint(2, 8, (4, 8))
    for sigma in (1e-7, 1e-4, 20.0):
        level = torch.full((4,), sigma)
        xt = ids.clone()
        xt[:, 3] = MASK if graph == "absorb" else 2
        noisy = Noisy(ids=xt, sigma=level, weight=level)
        nats = position_nats(model, ids, noisy, config)
        assert torch.isfinite(nats).all()
        assert (nats >= 0).all()
        nats.sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_canvases_to_check_on_grow_noisier_with_the_level(graph):
    corrupt = canvas_noise(config_of(graph))
    clean = np.full(2000, 3, np.int32)
    before, last = np.zeros(2000, bool), 0.0
    for level in (0.0, 0.3, 0.6, 1.0):
        noisy, inputs = corrupt(clean, level, np.random.default_rng(0), 16)
        moved = noisy != clean
        assert noisy.dtype == np.int32
        assert (moved | ~before).all()
        assert moved.mean() == pytest.approx(
            -math.expm1(-inputs["sigma"]) * (1 if graph == "absorb" else 6 / 7), abs=0.04
        )
        assert inputs["sigma"] >= last
        before, last = moved, inputs["sigma"]


def test_defaults_follow_the_graph_and_the_published_shape_is_a_preset():
    assert config_of("absorb")["noise_schedule"]["name"] == "loglinear"
    noise = config_of("uniform")["noise_schedule"]
    assert noise == {"name": "geometric", "sigma_min": 1e-4, "sigma_max": 20.0}
    options = {**BASE, "size": "char", "vocab_size": 106, "context": 256, "graph": "uniform"}
    for name in ("dim", "num_layers", "num_heads"):
        del options[name]
    options["pad_token_id"] = None
    model = FAMILY.make_config(options)["model"]
    shape = {name: model[name] for name in ("dim", "num_layers", "num_heads", "condition_dim")}
    assert shape == {"dim": 640, "num_layers": 10, "num_heads": 10, "condition_dim": 160}
    assert model["dropout"] == 0.2
    assert model["context"] == 256


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"graph": "both"}, "graph must be uniform or absorb"),
        ({"graph": "uniform", "masking": "count"}, "masking count"),
        ({"sigma_max": 5.0}, "unknown parameter 'sigma_max'"),
        ({"block_sizes": "3"}, "--block-size 3"),
        ({"block_sizes": "1"}, "2 positions"),
        ({"t_min": 0.1}, "--t-min"),
        ({"size": "giant"}, "giant"),
        ({"mask_token_id": None}, "mask_token_id"),
    ],
)
def test_options_that_make_no_sense_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        config_of(**options)


def test_the_family_trains_below_the_entropy_of_independent_tokens():
    """Text where each token tells its neighbours: only context gets below the marginal entropy."""
    config = config_of("absorb", masking="count")
    torch.manual_seed(0)
    model = FAMILY.make_model(config["model"])
    assert isinstance(model, ScoreNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def batch():
        first = torch.randint(2, 8, (64, 1), generator=generator)
        return (first - 2 + torch.arange(8)) % 6 + 2

    losses = []
    for _ in range(160):
        loss = FAMILY.loss(model, Batch(ids=batch()), generator, config).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Position 0 is given and determines the rest: the entropy is 0, the marginal one log 6.
    assert np.mean(losses[-10:]) < 0.3 * math.log(6)
