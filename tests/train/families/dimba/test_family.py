"""The objective of dimba: what it leaks, what keeps embeddings apart, what its draws are."""

import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.noise.latent import LatentSchedule
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.families.dimba.family import Objective, _draw
from dlm_edge.train.families.dimba.model import Denoiser, DenoiseStep, DimbaConfig, GuidedStep
from dlm_edge.train.nn.mamba2 import Mamba2Config

FAMILY = FAMILIES["dimba"]
OPTIONS = {
    "dim": 32, "num_layers": 1, "num_heads": 2, "state_size": 8, "latent_dim": 8,
    "vocab_size": 20, "context": 16, "eos_token_id": 0, "mask_token_id": 1,
}  # fmt: skip


def make(**options):
    config = FAMILY.make_config({**OPTIONS, **options})
    torch.manual_seed(0)
    return FAMILY.make_model(config["model"]), config


def stirred(model: Denoiser) -> Denoiser:
    """Gives the modulations weights, which start at 0."""
    for layer in model.trunk.layers:
        torch.nn.init.normal_(layer.modulation.weight, std=0.2)
        torch.nn.init.normal_(layer.modulation.bias, std=0.2)
    return model.double()


def given_by(model, ids, known, level, noise):
    clean = torch.nn.functional.embedding(ids, model.table.rows())
    angle = level[:, None, None] * torch.pi / 2
    noisy = angle.cos() * clean + angle.sin() * noise
    return torch.where(known[..., None], clean, noisy)


def test_an_answer_leaves_its_prompts_encoding_unchanged():
    model, _ = make(prompt_encoder=True)
    model = stirred(model)
    ids = torch.randint(2, 20, (2, 16))
    known = (torch.arange(16) < 5).expand(2, 16)
    other = torch.where(known, ids, (ids + 1) % 20)
    level, noise = torch.full((2,), 0.4).double(), torch.randn(2, 16, 8).double()
    flags = known.double()
    found = [
        model.encode(given_by(model, each, known, level, noise), flags) for each in (ids, other)
    ]
    assert torch.equal(*found)
    changed = torch.where(known, (ids + 1) % 20, ids)
    assert not torch.equal(
        found[0], model.encode(given_by(model, changed, known, level, noise), flags)
    )


def test_at_full_noise_nothing_of_the_answer_reaches_the_estimate():
    model, _ = make(zero_snr=True, prompt_encoder=True)
    model = stirred(model)
    ids = torch.randint(2, 20, (2, 16))
    known = (torch.arange(16) < 5).expand(2, 16)
    other = torch.where(known, ids, (ids + 1) % 20)
    level, noise = torch.ones(2).double(), torch.randn(2, 16, 8).double()
    latents = [given_by(model, each, known, level, noise) for each in (ids, other)]
    before = torch.zeros(2, 16, 8).double()
    found = [model.denoise(each, known.double(), level, before) for each in latents]
    torch.testing.assert_close(*found, atol=1e-10, rtol=0)


def closeness(model: Denoiser) -> float:
    """The cosine between a token's embedding and the one nearest to it, the mean over tokens."""
    rows = torch.nn.functional.normalize(model.table.rows().detach(), dim=-1)[2:]
    return float((rows @ rows.T - 2 * torch.eye(len(rows))).max(dim=1).values.mean())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_embeddings_merge_without_the_loss_of_rounding_and_not_with_it(weight):
    model, config = make(
        dim=16,
        context=8,
        vocab_size=12,
        latent_dim=4,
        rounding_weight=weight,
        self_conditioning=0.0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.0)
    for step in range(150):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(2, 12, (16, 8), generator=generator)
        optimizer.zero_grad()
        FAMILY.loss(model, Batch(ids=ids), generator, config).loss.backward()
        optimizer.step()
    if weight:
        assert closeness(model) < 0.7
    else:
        assert closeness(model) > 0.98


def test_the_estimate_is_x0_where_the_network_gives_its_v():
    shape = Mamba2Config(dim=16, num_layers=1, num_heads=2, state_size=8)
    model = Denoiser(
        DimbaConfig(shape=shape, vocab_size=9, context=8, latent_dim=4, prediction="v")
    )
    model.write.weight.data.zero_()
    level = torch.tensor([0.3])
    angle = level * torch.pi / 2
    x0, v = torch.randn(1, 8, 4), torch.tensor([0.5, -1.0, 2.0, 0.0])
    model.write.bias.data.copy_(v)  # the network gives v everywhere
    noise = (v + angle.sin() * x0) / angle.cos()
    z = angle.cos() * x0 + angle.sin() * noise
    found = model.denoise(z, torch.zeros(1, 8), level, torch.zeros(1, 8, 4))
    torch.testing.assert_close(found, x0)


def test_the_head_rounds_to_the_nearest_embedding():
    model, _ = make()
    estimate = torch.randn(50, 8)
    distance = torch.cdist(estimate, model.table.rows())
    assert torch.equal(model.table(estimate).argmax(dim=-1), distance.argmin(dim=-1))


def test_draws_give_gaps_prompts_and_whole_texts_and_never_all():
    ids = torch.zeros(4000, 16, dtype=torch.long)
    drawn = _draw(ids, 8, LatentSchedule(), Objective(), torch.Generator().manual_seed(0), (0, 1))
    known = drawn.known
    assert known[:, 0].all()
    assert not known.all(dim=1).any()
    whole = known.sum(dim=1) == 1
    gap = known[:, -1]
    assert 0.5 < whole.float().mean() < 0.6
    assert 0.15 < gap.float().mean() < 0.27
    edges = (known[:, 1:] != known[:, :-1]).sum(dim=1)
    assert edges.max() == 2, "one gap at most"
    assert abs(drawn.dropped.float().mean() - 0.1) < 0.02
    assert abs(drawn.conditioned.float().mean() - 0.5) < 0.03
    assert drawn.time.min() >= 1
    assert drawn.time.max() <= 1000
    assert abs(drawn.time.double().mean() - 500.5) < 2, "low discrepancy"


def test_guided_is_the_estimate_moved_away_from_the_one_without_its_prompt():
    model, _ = make()
    model = stirred(model).float().eval()
    rows = model.table.rows().detach()
    latents, known = torch.randn(1, 16, 8), (torch.arange(16) < 4).float()[None]
    level, before = torch.tensor([0.6]), torch.randn(1, 16, 8)
    plain, guided = (kind(model, rows, (1,)) for kind in (DenoiseStep, GuidedStep))
    with_it = plain(latents, known, level, before)[1]
    without = plain(latents * (1 - known)[..., None], known, level, before)[1]
    for scale in (0.0, 1.0, 2.5):
        found = guided(latents, known, level, torch.tensor([scale]), before)
        torch.testing.assert_close(
            found[1], without + scale * (with_it - without), atol=1e-5, rtol=1e-5
        )
        logits, clean, expected, nearest = found
        torch.testing.assert_close(expected, logits.softmax(-1) @ rows)
        torch.testing.assert_close(nearest, rows[logits.argmax(-1)])
        assert logits[..., 1].max() < -1e3, "the mask is never rounded to"
        del clean


def test_a_first_estimate_changes_the_loss_of_those_that_get_one():
    model, config = make(self_conditioning=0.9)
    stirred(model).float()
    ids = torch.randint(2, 20, (8, 16))
    arguments = {
        "noise": torch.randn(8, 16, 8),
        "known": (torch.arange(16) < 1).expand(8, 16),
        "level": torch.full((8,), 0.5),
        "dropped": torch.zeros(8, dtype=torch.bool),
    }
    none, half = torch.zeros(8, dtype=torch.bool), torch.arange(8) < 4
    without = model(ids, **arguments, conditioned=none)[0]
    found = model(ids, **arguments, conditioned=half)[0]
    assert torch.allclose(found[4:], without[4:])
    assert not torch.allclose(found[:4], without[:4])
    assert config["model"]["self_conditioning"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "eps"}, "--prediction"),
        ({"noise_schedule": "loglinear"}, "cosine and linear"),
        ({"noise_steps": 0}, "--noise-steps"),
        ({"self_conditioning": 1.0}, "--self-conditioning"),
        ({"condition_dropout": -0.1}, "--condition-dropout"),
        ({"min_snr": 0.0}, "--min-snr"),
        ({"rounding_weight": -1.0}, "--rounding-weight"),
        ({"num_kv_heads": 2}, "takes no --kv-heads"),
        ({"backbone": "llama"}, "backbone mamba2"),
        ({"num_heads": 3}, "no multiple of 3 heads"),
        ({"state_size": 12}, "--state-size 12"),
        ({"num_heads": None, "expand": 0}, "model expand must be a positive integer"),
        ({"block_sizes": "7"}, "must divide the context"),
        ({"graph": "absorb"}, "takes no --graph"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_without_condition_dropout_there_is_no_guided_graph():
    model, config = make(condition_dropout=0.0)
    assert [graph.name for graph in FAMILY.graphs(model, config)] == ["embed", "denoise"]


def test_without_self_conditioning_no_graph_reads_an_estimate():
    model, config = make(self_conditioning=0.0)
    for graph in FAMILY.graphs(model, config):
        assert "before" not in {tensor.role for tensor in graph.inputs}


def test_canvases_of_a_batch_are_guided_each_by_itself():
    model, _ = make()
    model = stirred(model).float().eval()
    step = GuidedStep(model, model.table.rows().detach(), ())
    inputs = [
        torch.randn(2, 16, 8),
        (torch.arange(16) < 4).float().expand(2, 16),
        torch.tensor([0.6, 0.2]),
        torch.tensor([0.5, 2.0]),
        torch.randn(2, 16, 8),
    ]
    together = step(*inputs)[1]
    for text in range(2):
        alone = step(*(value[text : text + 1] for value in inputs))[1]
        torch.testing.assert_close(together[text : text + 1], alone, atol=1e-5, rtol=1e-5)
