"""A step whose rows are placed by its inputs: equal to what the training-time forward computes."""

import pytest
import torch
from dlm_edge.runtime.families.tidar.layout import draft_layout, draft_rows, open_layout
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.families.tidar.graphs import drafting, uncached_logits
from dlm_edge.train.nn.block_step import BlockStep, Head
from dlm_edge.train.nn.draft_step import DraftStep

VOCAB, MASK, CONTEXT = 30, 1, 16


def make(backbone="native", **options):
    torch.manual_seed(0)
    options = {
        "dim": 32, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB, "context": 48,
        "eos_token_id": 0, "mask_token_id": MASK, "block_sizes": "3", "backbone": backbone,
        **options,
    }  # fmt: skip
    config = FAMILIES["tidar"].make_config(options)
    model = FAMILIES["tidar"].make_model(config["model"]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def empty_cache(model):
    config = model.config
    shape = (CONTEXT, 1, config.num_layers, 2, config.num_kv_heads, config.head_dim)
    return torch.full(shape, 7.0)  # rows from start on are ignored, whatever stands there


def filled(model, ids):
    """The cache of a known text, made token by token."""
    step, kv = DraftStep(model, with_head=True), empty_cache(model)
    for place, token in enumerate(ids):
        start = torch.tensor([place], dtype=torch.int32)
        zero = torch.zeros(1, 1, dtype=torch.int32)
        _, new = step(token.view(1, 1), start, zero, torch.ones(1, 1, 1), kv)
        kv[place] = new[0]
    return kv


@pytest.mark.parametrize("backbone", ["native", "qwen2", "qwen3"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_rows_in_any_layout_are_the_uncached_forwards(backbone, kv_heads):
    model = make(backbone, num_kv_heads=kv_heads)
    text = torch.randint(2, VOCAB, (1, 7), dtype=torch.int32)
    kv = filled(model, text[0])
    for layout in (draft_layout(3), open_layout(3, 4)):
        ids = torch.randint(2, VOCAB, (1, draft_rows(3)), dtype=torch.int32)
        offsets, visible = torch.tensor(layout.offsets), torch.tensor(layout.visible)
        start = torch.tensor([7], dtype=torch.int32)
        found, _ = DraftStep(model, with_head=True)(ids, start, offsets[None], visible[None], kv)
        told = {"offsets": layout.offsets, "visible": layout.visible}
        wanted = uncached_logits(model, text, ids, told)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_lower_triangle_is_the_block_step():
    model = make()
    text = torch.randint(2, VOCAB, (1, 5), dtype=torch.int32)
    kv, start = filled(model, text[0]), torch.tensor([5], dtype=torch.int32)
    ids = torch.randint(2, VOCAB, (1, 6), dtype=torch.int32)
    offsets = torch.arange(6, dtype=torch.int32)[None]
    found = DraftStep(model, with_head=True)(ids, start, offsets, torch.ones(1, 6, 6).tril(), kv)
    wanted = BlockStep(model)(ids, start, kv)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_the_head_apart_gives_the_logits_of_the_whole():
    model = make(tie_embeddings=True)
    layout = draft_layout(3)
    ids = torch.randint(2, VOCAB, (1, 12), dtype=torch.int32)
    given = (
        ids, torch.zeros(1, dtype=torch.int32), torch.tensor(layout.offsets)[None],
        torch.tensor(layout.visible)[None], empty_cache(model),
    )  # fmt: skip
    whole, _ = DraftStep(model, with_head=True)(*given)
    hidden, _ = DraftStep(model, with_head=False)(*given)
    (found,) = Head(model)(hidden[:, 3:6])
    torch.testing.assert_close(found, whole[:, 3:6])


def test_canvases_are_known_text_or_drafts_with_their_proposals():
    import numpy as np

    corrupt = drafting(MASK, VOCAB)
    clean = np.arange(2, 14, dtype=np.int32)
    ids, extra = corrupt(clean, 0.0, np.random.default_rng(0), 3)
    assert (ids == clean).all()
    assert (extra["visible"] == np.tri(12)).all()
    ids, extra = corrupt(clean, 1.0, np.random.default_rng(0), 3)
    assert ids[0] == clean[0]
    assert (ids[3:] == MASK).all()
    assert (extra["visible"] == draft_layout(3).visible).all()
    assert (extra["offsets"] == draft_layout(3).offsets).all()
    ids, extra = corrupt(clean[:1], 1.0, np.random.default_rng(0), None)
    assert ids.tolist() == [2]
