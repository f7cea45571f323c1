"""Models whose row i speaks for position i + 1: texts against decoding without a cache, and the
bound against that of the same model unshifted."""

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import Generation, generate
from rules import decoding as any_rule
from table_engines import TableEngines, hashed, make_manifest

V, BLOCK = 40, 8
MASK = V - 1
SHAPES = [(8, 16), (8, 64), (16, 16), (16, 64), (64, 8)]


def decoding(**values):
    return any_rule(block_size=BLOCK, **values)


def endless(prefix, block):
    logits = hashed(V)(np.asarray(prefix), np.asarray(block)).copy()
    logits[:, 0] = -40
    return logits


def decode(denoiser=endless, *, splits=True, **fields):
    engines = TableEngines(denoiser, SHAPES, V, splits=splits)
    model = load_model(make_manifest(engines, logit_shift=1), engines)
    base = {"prompt_ids": (0, 5, 6), "max_tokens": 29, "seed": 3, "sample_index": 0}
    return generate(model, Request(**{**base, **fields})), engines


def reference(prompt, count, *, threshold, sub_block=None, merge=0):
    """What the rule `threshold` writes greedily, every row computed anew from the ids alone."""
    ids, limit, runs = list(prompt), len(prompt) + count, 0
    while len(ids) < limit:
        start = len(ids) // BLOCK * BLOCK
        canvas = ids[start:] + [MASK] * (BLOCK - len(ids) % BLOCK)
        before = endless(ids[: start - BLOCK], ids[start - BLOCK : start])[-1:] if start else None
        while True:
            masked = [i for i in range(BLOCK) if canvas[i] == MASK and start + i < limit]
            if not masked:
                break
            rows = endless(ids[:start], canvas)
            rows = np.concatenate([rows[:1] if before is None else before, rows[:-1]])
            rows[:, [MASK, V - 2]] = -np.inf
            weights = np.exp(rows - rows.max(axis=1, keepdims=True))
            best = rows.argmax(axis=1)
            sure = (weights / weights.sum(axis=1, keepdims=True)).max(axis=1)
            alone = masked[0] == 0 and not merge
            runs += not alone
            if alone:
                masked = [0]
            elif sub_block:
                masked = [i for i in masked if i // sub_block == masked[0] // sub_block]
            top = max(masked, key=lambda i: sure[i])
            for i in masked:
                if i == top or sure[i] >= threshold:
                    canvas[i] = int(best[i])
        ids = (ids[:start] + canvas)[:limit]
    return tuple(ids), runs


@pytest.mark.parametrize("length", [1, 3, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1])
@pytest.mark.parametrize(
    "how", [{}, {"sub_block": 4}, {"sub_block": 3}, {"sub_block": 2**70}, {"merge": 1}], ids=str
)
def test_a_text_is_that_of_decoding_without_a_cache(length, how):
    prompt = tuple(5 + (7 * i) % 20 for i in range(length))
    asked = decoding(rule="threshold", threshold=0.3, **how)
    result, _ = decode(prompt_ids=prompt, settings=asked)
    expected, runs = reference(prompt, 29, threshold=0.3, **how)
    assert result.token_ids == expected
    stored = (length + 28) // BLOCK  # a block that no other follows is not stored
    begun = len([i for i in range(length // BLOCK * BLOCK, length + 29, BLOCK) if i])
    assert result.nfe == runs + stored - (begun if how.get("merge") else 0)


@pytest.mark.parametrize("more", range(2 * BLOCK))
@pytest.mark.parametrize("merge", [0, 1])
def test_a_text_that_goes_on_from_the_cache_is_that_of_decoding_without_one(more, merge):
    engines = TableEngines(endless, SHAPES, V, splits=True)
    model = load_model(make_manifest(engines, logit_shift=1), engines)
    fields = {"seed": 3, "sample_index": 0, "settings": decoding(threshold=0.3, merge=merge)}
    first = Generation(model, Request(prompt_ids=(0, 5, 6), max_tokens=29, **fields))
    for _ in first:
        pass
    said = tuple(5 + (7 * i) % 20 for i in range(more))
    ids = (*first.result.token_ids, *said)
    held = min(first.held.num_common(ids, fields["settings"], {}), len(ids) - 1)
    request = Request(prompt_ids=ids, max_tokens=20, num_cached=held, **fields)
    second = Generation(model, request)
    for _ in second:
        pass
    assert second.num_cached == held // BLOCK * BLOCK > BLOCK
    expected, _ = reference(ids, 20, threshold=0.3, merge=merge)
    assert second.result.token_ids == expected


def test_the_run_that_stores_a_block_is_over_that_block_alone_unless_merged():
    _, engines = decode(settings=decoding(threshold=0.3))
    assert {rows for rows, *_ in engines.runs} == {BLOCK}
    _, engines = decode(settings=decoding(threshold=0.3, merge=1))
    assert {rows for rows, *_ in engines.runs} == {BLOCK, 2 * BLOCK}


def test_every_rule_ends_and_writes_what_was_asked():
    for rule in ("low_confidence", "random", "first_hitting", "ancestral", "entropy_bound"):
        result, _ = decode(settings=decoding(rule=rule, sub_block=4))
        assert len(result.new_token_ids) == 29
        assert MASK not in result.new_token_ids


def test_a_gap_at_the_first_position_is_refused_and_others_are_filled():
    template = (5, MASK, MASK, 7, MASK)
    result, _ = decode(template_ids=template, settings=decoding(threshold=0.3))
    assert MASK not in result.token_ids
    assert (result.token_ids[0], result.token_ids[3]) == (5, 7)
    with pytest.raises(ConfigError, match="begins with a gap"):
        decode(template_ids=(MASK, 5))


def test_merging_is_refused_where_it_changes_nothing():
    engines = TableEngines(endless, SHAPES, V, splits=True)
    model = load_model(make_manifest(engines), engines)
    asked = Request(
        prompt_ids=(0, 5), max_tokens=4, seed=0, sample_index=0, settings=decoding(merge=1)
    )
    with pytest.raises(ConfigError, match="leave it out"):
        generate(model, asked)
    assert "merge" not in decoding().to_json()


def test_the_bound_is_that_of_the_same_model_with_rows_that_speak_for_themselves():
    table = np.random.default_rng(5).normal(size=(65, V)).astype(np.float32)
    window = np.random.default_rng(6).integers(1, V - 2, 4 * BLOCK).astype(np.int32)
    found = []
    for shift in (0, 1):

        def by_position(prefix, block, shift=shift):
            start = len(prefix) + shift
            return table[start : start + len(block)]

        engines = TableEngines(by_position, SHAPES, V)
        model = load_model(make_manifest(engines, logit_shift=shift), engines)
        nats = model.family.bound(model, [window], seed=1, samples=range(3), block_size=BLOCK)
        found.append(next(iter(nats)))
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0].sum() > 0
