"""The state space by chunks and as one product against its recurrence; the mixer's directions."""

import pytest
import torch
import torch.nn.functional as F
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.nn.mamba2 import (
    CONDITIONINGS,
    Mamba2Config,
    Mamba2Trunk,
    Mixer,
    resolve_shape,
    ssd_chunked,
    ssd_matrix,
)

CONFIG = Mamba2Config(dim=16, num_layers=2, num_heads=4, state_size=8)


def recurrence(x, dt, decay, b, c):
    """The definition: one position after the other."""
    state, found = torch.zeros(*x.shape[:1], *x.shape[2:], b.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        fades = torch.exp(dt[:, t] * decay)[:, :, None, None]
        adds = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None]
        state = fades * state + adds
        found.append((state * c[:, t, None, None]).sum(-1))
    return torch.stack(found, dim=1)


def drawn(length: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, b, c = normal(3, length, 4, 5), normal(3, length, 8), normal(3, length, 8)
    return x, F.softplus(normal(3, length, 4)), -torch.exp(normal(4)), b, c


@pytest.mark.parametrize("length", [1, 7, 64, 100])
def test_the_matrix_gives_what_the_recurrence_gives(length):
    inputs = drawn(length)
    assert (ssd_matrix(*inputs) - recurrence(*inputs)).abs().max() < 1e-10


@pytest.mark.parametrize("length", [1, 7, 16, 33, 64, 100])
@pytest.mark.parametrize("chunk", [4, 16])
def test_chunks_give_what_the_recurrence_gives_with_gradients(length, chunk):
    inputs = drawn(length)
    for part in inputs:
        part.requires_grad_()
    found, wanted = ssd_chunked(*inputs, chunk=chunk), recurrence(*inputs)
    assert (found - wanted).abs().max() < 1e-10
    probe = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, inputs, probe),
        torch.autograd.grad(wanted, inputs, probe),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_the_matrix_read_from_the_end_is_that_of_flipped_inputs():
    x, dt, decay, b, c = drawn(20)
    flipped = ssd_matrix(*(part.flip(1) for part in (x, dt)), decay, b.flip(1), c.flip(1))
    found = ssd_matrix(x, dt, decay, b, c, reverse=True)
    assert (found - flipped.flip(1)).abs().max() < 1e-10


def test_steep_decays_over_a_long_text_stay_finite():
    x, dt, decay, b, c = (part.float() for part in drawn(256))
    found = ssd_matrix(x, 50 * dt, 100 * decay, b, c)
    assert found.isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_mixer_gives_the_same_traced_and_in_training(reverse):
    torch.manual_seed(0)
    mixer, x = Mixer(CONFIG).double(), torch.randn(2, 150, 16, dtype=torch.float64)
    trained, traced = mixer(x, reverse=reverse), mixer(x, reverse=reverse, matrix=True)
    assert (trained - traced).abs().max() < 1e-10


@pytest.mark.parametrize("reverse", [False, True])
def test_a_mixer_reads_one_direction_only(reverse):
    torch.manual_seed(0)
    mixer, x = Mixer(CONFIG).double(), torch.randn(1, 30, 16, dtype=torch.float64)
    other = x.clone()
    other[:, 12] += 1
    changed = (mixer(x, reverse=reverse) != mixer(other, reverse=reverse)).any(-1)[0]
    expected = torch.arange(30) <= 12 if reverse else torch.arange(30) >= 12
    assert changed[12]
    assert not changed[~expected].any()


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_trunk_sees_both_sides_and_the_condition(conditioning):
    torch.manual_seed(0)
    config = Mamba2Config(
        dim=16, num_layers=2, num_heads=4, state_size=8, conditioning=conditioning
    )
    trunk = Mamba2Trunk(config).double()
    for layer in trunk.layers:
        torch.nn.init.normal_(layer.modulation.weight, std=0.1)
        torch.nn.init.normal_(layer.modulation.bias, std=0.1)
    x, condition = torch.randn(2, 30, 16).double(), torch.randn(2, 16).double()
    base = trunk(x, condition)
    torch.testing.assert_close(trunk(x, condition, matrix=True), base, atol=1e-10, rtol=0)
    other = x.clone()
    other[:, 12] += 1
    assert (trunk(other, condition) != base).any(-1).all()
    assert (trunk(x, condition + 1) != base).any(-1).all()


def test_layers_begin_as_the_identity_under_adaln():
    trunk = Mamba2Trunk(CONFIG)
    x = torch.randn(1, 9, 16)
    torch.testing.assert_close(trunk(x, torch.randn(1, 16)), trunk.norm_f(x))


def test_recomputed_layers_have_the_same_gradients():
    torch.manual_seed(0)
    trunk = Mamba2Trunk(CONFIG)
    torch.nn.init.normal_(trunk.layers[0].modulation.weight)
    found = []
    for trunk.recompute in (False, True):
        trunk.zero_grad()
        torch.manual_seed(1)
        trunk(torch.randn(2, 9, 16), torch.randn(2, 16)).square().sum().backward()
        found.append([p.grad.clone() for p in trunk.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 30, "num_layers": 1, "num_heads": 7}, "no multiple of 7 heads"),
        ({"dim": 30, "num_layers": 1}, "give --heads"),
        ({"dim": 32, "num_layers": 1, "state_size": 12}, "--state-size 12"),
        ({"dim": 32, "num_layers": 1, "conditioning": "concat"}, "--conditioning 'concat'"),
        ({"size": "huge"}, "--size 'huge'"),
        ({"dim": 32}, "both --dim and --layers"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve_shape(options)
