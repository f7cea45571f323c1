"""The cached block step against the training forward, which has no cache."""

import pytest
import torch
from dlm_edge.train.nn.block_step import BlockStep, LayerCacheStep
from dlm_edge.train.nn.config import resolve_model
from dlm_edge.train.nn.masks import block_diffusion_mask, causal_mask
from dlm_edge.train.nn.transformer import Transformer

LENGTH, VOCAB, MASK = 24, 30, 1


def make(**options):
    torch.manual_seed(0)
    config = resolve_model(
        {"dim": 32, "num_layers": 3, "num_heads": 2, "vocab_size": VOCAB, "context": LENGTH}
        | options
    )
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def empty_cache(model, context):
    config = model.config
    shape = (context, 1, config.num_layers, 2, config.num_kv_heads, config.head_dim)
    # Rows behind `start` may hold anything finite.
    return torch.full(shape, 50.0)


@torch.no_grad()
def decode(model, noisy, clean, size, context):
    """Logits of every noisy block, each after the clean blocks before it were committed."""
    step, cache, parts = BlockStep(model).eval(), empty_cache(model, context), []
    conditioned = model.time is not None
    for start in range(0, noisy.shape[1], size):
        at = torch.tensor([start], dtype=torch.int32)
        times = [torch.full((1, size), t) for t in (0.7, 0.0)] if conditioned else [None, None]
        block = noisy[:, start : start + size].int()
        parts.append(step(block, at, cache, time=times[0])[0])
        cache[start : start + size] = step(
            clean[:, start : start + size].int(), at, cache, time=times[1]
        )[1]
    return torch.cat(parts, dim=1)


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(2)
    clean = torch.randint(2, VOCAB, (1, LENGTH), generator=generator)
    hidden = torch.rand(1, LENGTH, generator=generator) < 0.5
    return clean.masked_fill(hidden, MASK), clean


@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize("size", [1, 4, 8, 12])
def test_cached_logits_equal_the_training_layout_for_every_block(ids, size, time_conditioning):
    model = make(time_conditioning=time_conditioning)
    noisy, clean = ids
    both = torch.cat([noisy, clean], dim=1)
    time = torch.cat([torch.full((1, LENGTH), 0.7), torch.zeros(1, LENGTH)], dim=1)
    mask = block_diffusion_mask(LENGTH, size, torch.device("cpu"))
    with torch.no_grad():
        expected = model(both, torch.arange(LENGTH).repeat(2), mask, num_outputs=LENGTH, time=time)
    found = decode(model, noisy, clean, size, context=LENGTH + 5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backbone": "qwen2", "num_heads": 4, "num_kv_heads": 2},
        {"backbone": "qwen3", "num_heads": 6, "num_kv_heads": 2, "head_dim": 8},
    ],
)
def test_cached_causal_logits_equal_one_causal_forward(ids, size, options):
    model = make(causal=True, **options)
    _, clean = ids
    with torch.no_grad():
        mask = causal_mask(LENGTH, torch.device("cpu"))
        expected = model(clean, torch.arange(LENGTH), mask)
    found = decode(model, clean, clean, size, context=LENGTH)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_whole_canvas_needs_no_context(ids):
    model = make()
    noisy, _ = ids
    with torch.no_grad():
        expected = model(noisy, torch.arange(LENGTH))
        start = torch.zeros(1, dtype=torch.int32)
        found, _ = BlockStep(model)(noisy.int(), start, empty_cache(model, 8))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_shapes_and_dtypes_are_those_of_the_table():
    model = make()
    ids, start = torch.zeros(1, 4, dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    logits, kv_new = BlockStep(model)(ids, start, empty_cache(model, 7))
    assert (logits.shape, logits.dtype) == ((1, 4, VOCAB), torch.float32)
    assert (kv_new.shape, kv_new.dtype) == ((4, 1, 3, 2, 2, 16), torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_a_split_run_stores_one_block_and_denoises_the_next_as_two_runs_do(ids, time_conditioning):
    noisy, clean = ids
    model, size = make(time_conditioning=time_conditioning), 4
    step, cache = BlockStep(model).eval(), empty_cache(model, 12)
    zero, four = torch.tensor([0]).int(), torch.tensor([size]).int()
    cache[:size] = step(clean[:, :size].int(), zero, cache, time=torch.zeros(1, size))[1]
    _, stored = step(clean[:, size : 2 * size].int(), four, cache, time=torch.zeros(1, size))
    after = cache.clone()
    after[size : 2 * size] = stored
    following = noisy[:, 2 * size : 3 * size].int()
    time = torch.full((1, size), 0.7)
    expected, _ = step(following, four + size, after, time=time)
    both = torch.cat([clean[:, size : 2 * size].int(), following], dim=1)
    times = torch.cat([torch.zeros(1, size), time], dim=1)
    logits, kv_new = step(both, four, cache, four, times)
    torch.testing.assert_close(logits[:, size:], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kv_new[:size], stored, rtol=1e-5, atol=1e-5)
    whole, _ = step(both, four, cache, zero, times)
    assert not torch.allclose(whole[:, :size], logits[:, :size], atol=1e-3)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@torch.no_grad()
def test_caches_of_each_layer_give_what_one_for_all_gives(ids, num_kv_heads):
    model = make(causal=True, num_kv_heads=num_kv_heads)
    _, clean = ids
    cache = torch.randn(empty_cache(model, 12).shape)
    apart = [cache[:, :, layer, kind] for layer in range(3) for kind in (0, 1)]
    block, start = clean[:, :4].int(), torch.tensor([7]).int()
    logits, kv_new = BlockStep(model)(block, start, cache)
    found, *new = LayerCacheStep(model)(block, start, *apart)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    assert len(new) == 6
    for number, rows in enumerate(new):
        wanted = kv_new[:, :, number // 2, number % 2]
        torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-5)
