"""The objective that teaches a causal model to draft."""

import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.nn.masks import causal_mask, draft_mask

FAMILY = FAMILIES["tidar"]
LENGTH, VOCAB, EOS, MASK = 12, 11, 0, 1
OPTIONS = {
    "dim": 16,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "backbone": "qwen2",
    "vocab_size": VOCAB,
    "context": LENGTH,
    "eos_token_id": EOS,
    "mask_token_id": MASK,
}


def make(**options):
    config = FAMILY.make_config({**OPTIONS, "block_sizes": "4", **options})
    torch.manual_seed(0)
    model = FAMILY.make_model(config["model"]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return config, model


def text(rows=2):
    return torch.randint(2, VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def draft_logits(model, ids, size):
    """Logits of the mask half (B, L, V)."""
    both = torch.cat([ids, torch.full_like(ids, MASK)], dim=1)
    places = torch.arange(LENGTH).repeat(2)
    return model(both, places, draft_mask(LENGTH, size, ids.device))[:, LENGTH:]


@pytest.mark.parametrize("size", [2, 4, 5, 12])
def test_no_draft_sees_its_own_block_or_what_follows(size):
    _, model = make()
    ids = text(1)
    before = draft_logits(model, ids, size)
    for place in range(LENGTH):
        changed = ids.clone()
        changed[0, place] = 2 + (ids[0, place] - 1) % (VOCAB - 2)
        after = draft_logits(model, changed, size)
        blind = (place // size + 1) * size  # blocks up to the changed token's own
        assert torch.equal(after[:, :blind], before[:, :blind])
        for row in range(blind, LENGTH):
            assert not torch.allclose(after[:, row], before[:, row], atol=1e-5)


def test_likelihood_is_that_of_a_causal_pass_over_the_text_alone():
    config, model = make()
    ids = text()
    with torch.no_grad():
        logits = model(ids, torch.arange(LENGTH), causal_mask(LENGTH, ids.device))[:, :-1]
    logits[..., MASK] = float("-inf")
    log_p = torch.log_softmax(logits, dim=-1)
    expected = -log_p.gather(2, ids[:, 1:, None]).squeeze(2).sum(dim=1)
    found = FAMILY.eval_loss(model, Batch(ids=ids), config, seed=0)
    assert set(found) == {"ar", "draft 4"}
    torch.testing.assert_close(found["ar"].float(), expected, atol=1e-5, rtol=1e-5)


def test_drafts_score_what_a_block_of_masks_after_the_text_before_it_says():
    config, model = make()
    ids, size = text(1), 4
    expected = 0.0
    for start in range(0, LENGTH, size):
        # Only the text before the block and the block's masks, with no copy of the text behind.
        visible = causal_mask(start + size, ids.device).clone()
        visible[start:, start:] = True
        row = torch.cat([ids[:, :start], torch.full((1, size), MASK)], dim=1)
        with torch.no_grad():
            logits = model(row, torch.arange(start + size), visible)[0, start:]
        logits[:, MASK] = float("-inf")
        log_p = torch.log_softmax(logits, dim=-1)
        for offset in range(size):
            if start + offset:
                expected -= log_p[offset, ids[0, start + offset]].item()
    found = FAMILY.eval_loss(model, Batch(ids=ids), config, seed=0)["draft 4"]
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_the_loss_weighs_both_halves_by_alpha(alpha):
    config, model = make(alpha=alpha)
    ids = text()
    output = FAMILY.loss(model, Batch(ids=ids), torch.Generator().manual_seed(0), config)
    figures = FAMILY.eval_loss(model, Batch(ids=ids), config, seed=0)
    causal, drafts = (figures[name].mean().item() / (LENGTH - 1) for name in ("ar", "draft 4"))
    assert output.num_tokens == 2 * (LENGTH - 1)
    expected = (alpha * causal + drafts) / (1 + alpha)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_mask_is_never_predicted():
    config, model = make()
    with torch.no_grad():
        model.head.weight[MASK] = 1e4
    losses = FAMILY.eval_loss(model, Batch(ids=text()), config, seed=0)
    assert all(bool(torch.isfinite(nats).all()) for nats in losses.values())
    assert max(float(nats.max()) for nats in losses.values()) < 1e4


def test_one_block_size_is_drawn_per_batch_by_its_weight():
    config, model = make(block_sizes="2:1,6:3")
    ids, losses = text(), []
    for seed in range(60):
        losses.append(
            FAMILY.loss(model, Batch(ids=ids), torch.Generator().manual_seed(seed), config).loss
        )
    values, counts = torch.stack(losses).unique(return_counts=True)
    assert len(values) == 2
    assert 8 <= int(counts.min()) <= 23  # of 60, a quarter expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_sizes": "1"}, "--block-size '1': tidar drafts blocks of 2 to 12"),
        ({"block_sizes": "13"}, "--block-size '13'"),
        ({"block_sizes": "full"}, "--block-size 'full'"),
        ({"block_sizes": "4:0"}, "--block-size: weights must be above 0"),
        ({"alpha": -1.0}, "alpha must be 0 or above"),
        ({"noise_schedule": "linear"}, "takes no --noise-schedule"),
        ({"mask_token_id": None}, "needs the option mask_token_id"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FAMILY.make_config({**OPTIONS, **options})
