"""The masked objective against what it must equal."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.noise.schedule import make_schedule
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.families.options import forbidden_ids, parse_block_sizes
from dlm_edge.train.nn.masks import block_diffusion_mask
from dlm_edge.train.nn.transformer import cross_entropy
from torch import nn

EOS, MASK, PAD, VOCAB = 0, 1, 2, 9
FAMILY = FAMILIES["mdlm"]


def config_of(length, block_sizes="full", **options):
    return FAMILY.make_config(
        {"dim": 16, "num_layers": 2, "num_heads": 2, "vocab_size": VOCAB, "context": length,
         "eos_token_id": EOS, "mask_token_id": MASK, "pad_token_id": PAD,
         "block_sizes": block_sizes, **options}
    )  # fmt: skip


def model_of(config):
    torch.manual_seed(0)
    model = FAMILY.make_model(config["model"]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def text(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


class Independent(nn.Module):
    """A denoiser that predicts one distribution everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, ids, positions, mask=None, *, rows, num_outputs, time):
        return self.logits.expand(len(rows), -1)


@pytest.mark.parametrize("block_sizes", ["full", "1"])
@pytest.mark.parametrize("schedule", ["loglinear", "cosine", "linear"])
def test_the_bound_of_an_independent_denoiser_is_its_negative_log_likelihood(schedule, block_sizes):
    config = config_of(2, block_sizes, noise_schedule=schedule)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[EOS, 5]]).repeat(20000, 1)
    found = FAMILY.eval_loss(Independent(logits), Batch(ids=ids), config, seed=0)
    allowed = logits.clone()
    allowed[[MASK, PAD]] = -math.inf
    expected = -torch.log_softmax(allowed, dim=0)[5].item()
    sums = next(iter(found.values()))
    # The share never masked (at most 1e-3), and the draw of the masks.
    error = sums.std().item() / math.sqrt(len(sums))
    assert sums.mean().item() == pytest.approx(expected, rel=2e-3, abs=4 * error)


def order_average(model, ids, config, blocks):
    """E over orders of the sum of log p, decoding one token at a time; exhaustive."""
    length = ids.shape[1]
    size = length // blocks
    total = 0.0
    for block in range(blocks):
        inside = [p for p in range(block * size, (block + 1) * size) if p > 0]
        orders = list(permutations(inside))
        for order in orders:
            for step, position in enumerate(order):
                noisy = ids.clone()
                noisy[0, list(order[step:])] = MASK
                # Later blocks are hidden, so whatever they hold must not matter.
                nats = token_nats(model, noisy, ids, position, size, config)
                total += nats / len(orders)
    return total


@torch.no_grad()
def token_nats(model, noisy, ids, position, size, config):
    length = ids.shape[1]
    if size == length:
        logits = model(noisy, torch.arange(length))
    else:
        mask = block_diffusion_mask(length, size, torch.device("cpu"))
        both = torch.cat([noisy, ids], dim=1)
        logits = model(both, torch.arange(length).repeat(2), mask, num_outputs=length)
    row = logits[:, position]
    return cross_entropy(row, ids[:, position], forbidden_ids(config)).item()


@torch.no_grad()
def exact_bound(model, ids, config, size):
    """The expectation of the loss, summing over all masks; t integrated by quadrature."""
    length = ids.shape[1]
    schedule = make_schedule("loglinear")
    nodes, shares = np.polynomial.legendre.leggauss(24)
    times, shares = (nodes + 1) / 2, shares / 2
    total = 0.0
    for block in range(length // size):
        inside = [p for p in range(block * size, (block + 1) * size) if p > 0]
        for bits in range(1, 2 ** len(inside)):
            hidden = [p for number, p in enumerate(inside) if bits >> number & 1]
            chance = schedule.move_chance(times)
            kept = len(inside) - len(hidden)
            density = chance ** len(hidden) * (1 - chance) ** kept * schedule.weight(times)
            noisy = ids.clone()
            noisy[0, hidden] = MASK
            nats = sum(token_nats(model, noisy, ids, p, size, config) for p in hidden)
            total += float((shares * density).sum()) * nats
    return total


@pytest.mark.parametrize(("length", "blocks"), [(5, 1), (6, 2)])
def test_the_bound_is_the_average_over_decoding_orders(length, blocks):
    config = config_of(length, str(length // blocks))
    model = model_of(config)
    ids = text(1, length)
    by_orders = order_average(model, ids, config, blocks)
    by_masks = exact_bound(model, ids, config, length // blocks)
    assert by_masks == pytest.approx(by_orders, rel=2e-3)
    # And the loss is an unbiased estimate of it.
    many = FAMILY.eval_loss(model, Batch(ids=ids.repeat(3000, 1)), config, seed=1)
    sums = next(iter(many.values()))
    error = sums.std().item() / math.sqrt(len(sums))
    assert sums.mean().item() == pytest.approx(by_orders, abs=4 * error, rel=2e-3)


def test_one_block_as_long_as_the_text_is_plain_masked_diffusion():
    config = config_of(8, "8")
    model = model_of(config)
    ids = text(4, 8)
    positions = torch.arange(8)
    noisy = ids.clone()
    noisy[:, 3:6] = MASK
    with torch.no_grad():
        plain = model(noisy, positions)
        mask = block_diffusion_mask(8, 8, torch.device("cpu"))
        doubled = model(torch.cat([noisy, ids], dim=1), positions.repeat(2), mask, num_outputs=8)
    torch.testing.assert_close(doubled, plain, atol=1e-4, rtol=1e-4)


def test_blocks_of_one_give_a_left_to_right_likelihood():
    config = config_of(6, "1")
    model = model_of(config)
    ids = text(1, 6)
    expected = 0.0
    for position in range(1, 6):
        noisy = ids.clone()
        noisy[0, position:] = MASK
        expected += token_nats(model, noisy, ids, position, 1, config)
    sums = FAMILY.eval_loss(model, Batch(ids=ids.repeat(4000, 1)), config, seed=0)["1"]
    error = sums.std().item() / math.sqrt(len(sums))
    assert sums.mean().item() == pytest.approx(expected, abs=4 * error, rel=2e-3)


def test_shards_make_up_the_whole_batch():
    config = config_of(8, "4,full")
    model = model_of(config)
    ids = text(6, 8)
    whole = FAMILY.loss(model, Batch(ids=ids), torch.Generator().manual_seed(5), config).loss
    parts = [
        FAMILY.loss(
            model,
            Batch(ids=ids[i * 2 : i * 2 + 2]),
            torch.Generator().manual_seed(5),
            config,
            shard=(i, 3),
        ).loss
        for i in range(3)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_mask_and_padding_have_no_probability_and_end_of_text_has():
    logits = torch.zeros(1, VOCAB)
    config = config_of(8)
    nats = cross_entropy(logits, torch.tensor([EOS]), forbidden_ids(config))
    assert nats.item() == pytest.approx(math.log(VOCAB - 2))
    for token in (MASK, PAD):
        assert math.isinf(cross_entropy(logits, torch.tensor([token]), forbidden_ids(config)))


def test_gradients_are_finite_under_bfloat16():
    config = config_of(8, "4,full", time_conditioning=True)
    model = FAMILY.make_model(config["model"])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            output = FAMILY.loss(model, Batch(ids=text(4, 8)), generator, config)
        output.loss.backward()
    assert output.num_tokens == 4 * 7
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_block_sizes_are_read_from_text():
    assert parse_block_sizes("16,32,full", 64) == (16, 32, 64)
    assert parse_block_sizes([8, "full"], 8) == (8,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_sizes": "3"}, "--block-size 3 must divide the context of 8"),
        ({"block_sizes": "0"}, "must divide"),
        ({"block_sizes": "big"}, "'big' must be a positive integer or 'full'"),
        ({"noise_schedule": "sigmoid"}, "unknown"),
        ({"t_min": 0.9, "t_max": 0.1}, "--t-min"),
        ({"masking": "all"}, "--masking must be independent or count"),
        ({"mask_token_id": 99}, "outside the vocabulary"),
        ({"mask_token_id": None}, "needs the option mask_token_id"),
        ({"vocab_size": None}, "needs the option vocab_size"),
        ({"blocks": 3}, "takes no --blocks"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config_of(8, **options)


def test_sequences_that_are_no_whole_number_of_blocks_are_refused():
    config = config_of(8, "4")
    with pytest.raises(ConfigError, match="no multiple of block 4"):
        FAMILY.loss(model_of(config), Batch(ids=text(1, 6)), torch.Generator(), config)


class ByPosition(nn.Module):
    """A denoiser whose row at position i speaks for position i + shift, whatever the text is."""

    def __init__(self, shift):
        super().__init__()
        self.shift, self.rows = shift, []
        self.table = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(4))

    def forward(self, ids, positions, mask=None, *, rows, time, num_outputs=None):
        self.rows.append((rows, ids))
        width = num_outputs or ids.shape[1]
        return self.table[positions[rows % width] + self.shift]


@pytest.mark.parametrize("blocks", ["full", "8"])
def test_rows_that_speak_for_the_next_position_give_the_same_bound(blocks):
    ids, found = text(3, 32, seed=2), []
    for shift in (0, 1):
        config, model = config_of(32, blocks, logit_shift=shift), ByPosition(shift)
        found.append(FAMILY.eval_loss(model, Batch(ids=ids), config, seed=5))
    for name, sums in found[0].items():
        torch.testing.assert_close(found[1][name], sums)
    if blocks == "8":  # the row before a block is that of the clean text
        rows, given = model.rows[0]
        position, width = rows % given.shape[1], given.shape[1]
        before = (position % 8 == 7) & (position < 32)
        assert width == 64
        assert not before.any()
        assert ((position >= 32) == (position % 8 == 7)).all()
        assert (given.flatten()[rows[position >= 32]] != MASK).all()
