from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.loop.heldout import frequency_nats, mean_nats, measure

CONFIG = FAMILIES["mdlm"].make_config(
    {
        "dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 30,
        "context": 16,
        "eos_token_id": 0,
        "mask_token_id": 1,
        "block_sizes": "8,full",
    }
)


def figures(num_rows: int = 64, batch_size: int = 16):
    torch.manual_seed(0)
    model = FAMILIES["mdlm"].make_model(CONFIG["model"])
    rows = torch.from_numpy(np.random.default_rng(0).integers(2, 30, (num_rows, 16)))
    found = measure(
        FAMILIES["mdlm"],
        model,
        CONFIG,
        Batch(ids=rows),
        batch_size=batch_size,
        device=torch.device("cpu"),
    )
    assert model.training
    return found


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary():
    found = figures()
    assert set(found) == {"8", "full"}
    for item in found.values():
        assert abs(item.nats - math.log(29)) < item.half_width + 0.1
        assert item.num_tokens == 64 * 15


def test_a_guess_by_token_frequency_costs_the_entropy_of_the_text():
    train = np.array([2, 2, 2, 3] * 10_000)
    rows = np.array([[9, 2, 2, 2, 3]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert frequency_nats(train, rows) == pytest.approx(entropy, rel=1e-3)
    assert math.isfinite(frequency_nats(train, np.array([[2, 29]])))


def test_equal_weights_give_equal_figures():
    assert figures() == figures()


def test_the_interval_shrinks_with_the_number_of_sequences():
    assert figures(256)["full"].half_width < figures(16)["full"].half_width


def test_the_mean_counts_every_block_size_once():
    found = figures()
    assert mean_nats(found) == pytest.approx((found["8"].nats + found["full"].nats) / 2)


def test_a_single_sequence_has_no_interval_and_says_so_in_valid_json():
    found = figures(num_rows=1)["full"]
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["half_width"] is written["perplexity_high"] is None
    assert str(found) == f"{found.nats:.4f}"
