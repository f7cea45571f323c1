"""Corruption: times, masks, and weights whose expectations are known."""

import pytest
import torch
from dlm_edge.runtime.noise.schedule import SCHEDULES, make_schedule
from dlm_edge.train.families.noise import MASKINGS, draw_noise, draw_times

BOTH = pytest.mark.parametrize("masking", MASKINGS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@BOTH
def test_the_given_position_is_never_masked(masking):
    noise = draw_noise((64, 8), 4, make_schedule("loglinear"), generator(), masking=masking)
    assert not noise.masked[:, 0].any()
    assert noise.masked[:, 1].any()


def test_times_fill_their_range_evenly():
    times = torch.sort(draw_times(16, 4, (0.3, 0.8), generator()).flatten()).values
    gaps = torch.diff(times) / 0.5
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 64), atol=1e-9, rtol=0)
    assert times[0] >= 0.3
    assert times[-1] < 0.8


@BOTH
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_every_scored_position_weighs_one_on_average(masking, name, block_size):
    schedule = make_schedule(name)
    noise = draw_noise((40000, 8), block_size, schedule, generator(1), masking=masking)
    weight = noise.masked * noise.weight.repeat_interleave(block_size, dim=1)
    mean, error = weight.mean(dim=0), weight.std(dim=0) / 200
    assert mean[0] == 0
    # `independent` leaves out what is never or always masked: up to 1e-3.
    slack = 2e-3 if masking == "independent" else 1e-5
    assert (torch.abs(mean[1:] - 1) < 5 * error[1:] + slack).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_counts_follow_the_move_chance_and_are_never_zero(name):
    noise = draw_noise((2000, 16), 8, make_schedule(name), generator(2), masking="count")
    counts = noise.masked.view(2000, 2, 8).sum(dim=-1)
    assert counts[:, 0].min() == 1
    assert counts[:, 0].max() == 7
    assert set(counts[:, 1].tolist()) <= set(range(1, 9))
    # Half a position more than the chance says, since a count of zero would score nothing.
    assert (counts[:, 1] - 8 * noise.move_chance[:, 1]).abs().max() <= 1.05


def test_a_block_of_one_position_is_always_masked_with_weight_one():
    noise = draw_noise((4, 6), 1, make_schedule("loglinear"), generator(), masking="count")
    assert noise.masked[:, 1:].all()
    torch.testing.assert_close(noise.weight[:, 1:], torch.ones(4, 5))
    assert (noise.weight[:, 0] == 0).all()


def test_counting_has_less_variance_where_all_tokens_are_equally_hard():
    totals = {}
    for masking in MASKINGS:
        noise = draw_noise((4000, 16), 16, make_schedule("loglinear"), generator(), masking=masking)
        totals[masking] = (noise.masked.sum(dim=1) * noise.weight[:, 0]).std()
    assert totals["count"] < 1e-4
    assert totals["independent"] > 3


def test_rows_are_a_part_of_the_batch():
    noise = draw_noise((6, 8), 4, make_schedule("cosine"), generator())
    part = noise.rows(2, 4, torch.device("cpu"))
    assert torch.equal(part.masked, noise.masked[2:4])
    assert torch.equal(part.weight, noise.weight[2:4])


def test_an_unknown_way_to_mask_is_refused():
    with pytest.raises(ValueError, match="none of"):
        draw_noise((1, 2), 1, make_schedule("loglinear"), generator(), masking="all")
