"""The score network: the form of its scores, and the exported step against the trained one."""

import itertools
import math

import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.nn.config import resolve_model
from dlm_edge.train.nn.score_net import ScoreConfig, ScoreNet, ScoreStep, log_expm1

VOCAB, MASK = 12, 1


def config_of(graph: str, **changes) -> ScoreConfig:
    shape = resolve_model(
        {"dim": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCAB, "context": 16, **changes}
    )
    return ScoreConfig(shape=shape, condition_dim=8, graph=graph)


def randomised(graph: str, **changes) -> ScoreNet:
    """A network whose every part acts: modulations start at 0."""
    torch.manual_seed(0)
    model = ScoreNet(config_of(graph, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


IDS = torch.tensor([[2, 1, 5, 11, 1, 0], [3, 3, 1, 7, 9, 10]])
SIGMA = torch.tensor([0.3, 4.0])


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_the_own_token_scores_zero_and_no_other_does(graph):
    log_score = randomised(graph)(IDS, SIGMA)
    own = torch.nn.functional.one_hot(IDS, VOCAB).bool()
    assert (log_score[own] == 0).all()
    assert (log_score[~own] != 0).all()


def test_an_untrained_absorbing_score_has_the_right_total_at_masked_positions():
    # Scores of a masked position sum to the chance of having been kept over that of being masked.
    torch.manual_seed(0)
    model = ScoreNet(config_of("absorb")).eval()
    torch.nn.init.zeros_(model.head.weight)
    log_score = model(IDS, SIGMA)
    states = [token for token in range(VOCAB) if token != MASK]
    for row, position in ((0, 1), (0, 4), (1, 2)):
        total = log_score[row, position, states].exp().sum().item()
        assert total == pytest.approx(1 / math.expm1(SIGMA[row].item()), rel=1e-5)


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_some_rows_are_rows_of_all(graph):
    model = randomised(graph)
    rows = torch.tensor([1, 4, 8])
    assert torch.allclose(model(IDS, SIGMA, rows), model(IDS, SIGMA).flatten(0, 1)[rows], atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_the_exported_step_computes_what_training_computes(graph, tied):
    model = randomised(graph, tie_embeddings=tied)
    expected = model(IDS, SIGMA)
    step = ScoreStep(model)
    for row in range(len(IDS)):
        (found,) = step(IDS[row : row + 1].int(), SIGMA[row : row + 1])
        assert torch.allclose(found[0], expected[row], atol=1e-5)


def test_the_noise_changes_scores_at_every_order_of_magnitude():
    model = randomised("uniform")
    levels = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
    scores = [model(IDS[:1], torch.tensor([level])) for level in levels]
    for first, second in itertools.pairwise(scores):
        assert (first - second).abs().max() > 1e-2


def test_every_position_sees_every_other():
    model = randomised("uniform")
    changed = IDS.clone()
    changed[0, 5] = 4
    difference = (model(changed, SIGMA) - model(IDS, SIGMA)).abs().amax(dim=-1)
    assert (difference[0] > 0).all()
    assert (difference[1] == 0).all()


def test_the_logarithm_of_expm1_is_exact_in_float32_over_the_whole_range():
    sigma = torch.logspace(-6, math.log10(20), 400, dtype=torch.float64)
    found = log_expm1(sigma.float()).double()
    exact = torch.log(torch.expm1(sigma.float().double()))
    # Near sigma = log 2 the value crosses 0, so the error is an absolute one there.
    assert ((found - exact).abs() <= 2e-6 * exact.abs().clamp(min=0.3)).all()
    assert torch.isfinite(log_expm1(torch.tensor([0.0])))


def test_config_reads_back_and_names_what_is_wrong():
    config = config_of("absorb")
    assert ScoreConfig.from_json(config.to_json()) == config
    values = config.to_json()
    for key in ("graph", "condition_dim"):
        with pytest.raises(ConfigError, match=key):
            ScoreConfig.from_json({name: values[name] for name in values if name != key})
    with pytest.raises(ConfigError, match="graph must be uniform or absorb"):
        config_of("both")
    with pytest.raises(ConfigError, match="condition_dim"):
        ScoreConfig.from_json({**values, "condition_dim": 0})
