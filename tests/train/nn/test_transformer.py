"""The native backbone: who influences whom, and what the forward's options mean."""

import pytest
import torch
from dlm_edge.train.nn.config import resolve_model
from dlm_edge.train.nn.masks import block_diffusion_mask
from dlm_edge.train.nn.transformer import Transformer

LENGTH, SIZE, VOCAB = 12, 4, 20


def make(**options):
    torch.manual_seed(0)
    config = resolve_model(
        {"dim": 16, "num_layers": 3, "num_heads": 2, "vocab_size": VOCAB, "context": LENGTH}
        | options
    )
    model = Transformer(config).eval()
    for parameter in model.parameters():
        # Larger than the initial weights, so that every influence shows.
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def run_blocks(model, ids):
    positions = torch.arange(LENGTH).repeat(2)
    mask = block_diffusion_mask(LENGTH, SIZE, torch.device("cpu"))
    with torch.no_grad():
        return model(ids[None], positions, mask, num_outputs=LENGTH)[0]


@pytest.mark.parametrize("index", range(2 * LENGTH))
def test_a_token_influences_only_the_blocks_that_may_see_it(index):
    model = make()
    ids = torch.randint(2, VOCAB, (2 * LENGTH,), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[index] = (ids[index] + 1) % VOCAB
    moved = (run_blocks(model, ids) != run_blocks(model, changed)).any(dim=1)
    block = index % LENGTH // SIZE
    # A noisy token shows in its own block only; a clean one in the blocks after its own.
    expected = [
        position // SIZE == block if index < LENGTH else position // SIZE > block
        for position in range(LENGTH)
    ]
    assert moved.tolist() == expected


def test_rows_are_the_same_logits_as_the_whole_grid():
    model = make()
    ids = torch.randint(0, VOCAB, (3, LENGTH))
    rows = torch.tensor([0, 5, LENGTH + 1, 3 * LENGTH - 1])
    with torch.no_grad():
        grid = model(ids, torch.arange(LENGTH))
        some = model(ids, torch.arange(LENGTH), rows=rows)
    torch.testing.assert_close(some, grid.flatten(0, 1)[rows])


def test_logits_depend_on_relative_positions_only():
    model = make()
    ids = torch.randint(0, VOCAB, (1, LENGTH))
    with torch.no_grad():
        here, there = (model(ids, torch.arange(LENGTH) + shift) for shift in (0, 37))
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


def test_tied_embeddings_share_one_matrix():
    tied, untied = make(tie_embeddings=True), make()
    assert tied.head.weight is tied.embed.weight
    difference = sum(p.numel() for p in untied.parameters()) - sum(
        p.numel() for p in tied.parameters()
    )
    assert difference == VOCAB * 16


def test_untrained_time_conditioning_changes_nothing_and_trained_does():
    config = resolve_model(
        {"dim": 16, "num_layers": 2, "num_heads": 2, "vocab_size": VOCAB, "context": LENGTH,
         "time_conditioning": True}
    )  # fmt: skip
    torch.manual_seed(0)
    fresh, trained = Transformer(config).eval(), make(time_conditioning=True)
    ids = torch.randint(0, VOCAB, (1, LENGTH))
    for model, same in ((fresh, True), (trained, False)):
        with torch.no_grad():
            early, late = (
                model(ids, torch.arange(LENGTH), time=torch.full((1, LENGTH), t))
                for t in (0.1, 0.9)
            )
        assert torch.equal(early, late) == same


def test_a_fresh_model_predicts_nearly_evenly():
    torch.manual_seed(0)
    config = resolve_model({"dim": 64, "num_layers": 2, "vocab_size": 100, "context": LENGTH})
    with torch.no_grad():
        logits = Transformer(config)(torch.arange(LENGTH)[None], torch.arange(LENGTH))
    assert logits.std() < 0.5
