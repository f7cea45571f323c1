"""TiDAR's loop: ends, limits, windows, the cache between requests, what is shown and refused."""

import numpy as np
import pytest
from bound_ops import OpsWith
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.next_token import NextToken
from dlm_edge.runtime.families.table import (
    decoding_blocks,
    decoding_settings,
    find_family,
    load_model,
)
from dlm_edge.runtime.families.tidar.family import DraftFamily
from dlm_edge.runtime.families.tidar.rules import DraftVerify
from dlm_edge.runtime.frames import canvases
from dlm_edge.runtime.generate import Generation, generate
from dlm_edge.runtime.measure.evaluate import evaluate_ids
from dlm_edge.runtime.ops.drafts import DRAFTS
from dlm_edge.runtime.ops.drafts.host import NumpyDrafts
from draft_engines import (
    DraftEngines,
    Model,
    causal_text,
    draft_manifest,
    draft_request,
    observed,
    run,
)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("block", [2, 5])
def test_a_text_that_ends_within_the_drafts_ends_there(split, block):
    """Whichever token of a text is called its end, the text before it comes out, and no more."""
    model, prompt = Model(24, seed=9, agreement=8.0), (0, 5, 7)
    whole, _ = causal_text(model, prompt, 20, stops=(), banned=(0,))
    for index in range(3, 12):
        stop = whole[index]
        engines = DraftEngines(model, [block], split=split)
        asked = draft_request(
            prompt_ids=prompt, max_tokens=20, banned_ids=(0,), end_ids=(stop,), provisional=True
        )
        found, _, spans = observed(engines, asked)
        end = whole.index(stop, len(prompt))
        assert list(found.token_ids) == whole[:end]
        assert found.finish_reason == "end"
        shown = [token for span in spans if span.committed for token in span.token_ids]
        assert [*prompt, *shown] == whole[:end]
        alone = draft_request(
            "next_token", prompt_ids=prompt, max_tokens=20, banned_ids=(0,), end_ids=(stop,)
        )
        assert run(engines, alone).token_ids == found.token_ids


@pytest.mark.parametrize("split", [False, True])
def test_no_text_goes_beyond_its_limit_and_none_costs_a_run_behind_it(split):
    model = Model(20, seed=4, agreement=1e4)
    whole, _ = causal_text(model, (0, 3, 1, 4, 1), 20, banned=(0,), stops=())
    for limit in range(1, 14):
        engines = DraftEngines(model, [4], split=split)
        asked = draft_request(max_tokens=limit, banned_ids=(0,))
        found, runs, _ = observed(engines, asked)
        assert list(found.token_ids) == whole[: 5 + limit]
        assert found.finish_reason == "length"
        # The first token comes with the prompt, each later run brings four.
        assert found.nfe == 1 + -(-(limit - 1) // 4)
        assert runs[-1].phase == ("head" if split else "verify" if limit > 1 else "prefill")
        heads = sum(one.phase == "head" for one in runs)
        assert heads == (2 * found.nfe - 1 if split else 0)
    assert run(engines, draft_request(max_tokens=0)).nfe == 0


def test_a_long_prompt_goes_in_by_whole_runs_and_leaves_masks_their_place():
    model = Model(30, seed=2)
    for length in range(1, 60):
        prompt = (0, *np.random.default_rng(length).integers(1, 28, size=length - 1).tolist())
        engines = DraftEngines(model, [3])
        found, runs, _ = observed(engines, draft_request(prompt_ids=prompt, max_tokens=3))
        assert list(found.token_ids) == causal_text(model, prompt, 3)[0]
        prefills = sum(one.phase == "prefill" for one in runs)
        assert prefills == 1 + max(0, -(-(length - 9) // 12))


def test_contexts_are_the_smallest_that_hold_what_a_run_reads_and_stores():
    model = Model(30, seed=2, agreement=8.0)
    engines = DraftEngines(model, [3], [8, 16, 64])
    run(engines, draft_request(max_tokens=40, banned_ids=(0,)))
    for name, rows, context, start in engines.runs[1:]:
        assert (name, rows) == ("step", 12)
        assert context == next(size for size in (8, 16, 64) if size >= start + 3)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("bound", ["context", "positions"])
def test_a_text_beyond_the_context_goes_on_in_a_window_and_says_so(split, bound):
    contexts, fields = ([24], {}) if bound == "context" else ([64], {"max_position": 24})
    model = Model(30, seed=2, agreement=8.0)
    engines = DraftEngines(model, [3], contexts, split=split)
    asked = draft_request(prompt_ids=tuple(range(1, 20)), max_tokens=60, banned_ids=(0,))
    found = run(engines, asked, **fields)
    assert (found.approximate, len(found.new_token_ids)) == (True, 60)
    assert max(start for _, _, _, start in engines.runs) < 24
    exact, _ = causal_text(model, tuple(range(1, 20)), 60, banned=(0,), stops=())
    assert list(found.token_ids[:25]) == exact[:25]  # until the first token is dropped
    short = run(engines, draft_request(prompt_ids=tuple(range(1, 20)), max_tokens=5), **fields)
    assert not short.approximate


@pytest.mark.parametrize("split", [False, True])
def test_what_is_not_called_approximate_is_the_causal_text(split):
    """Around the last position that a model knows, which a step of drafts may run beyond."""
    model, flagged = Model(30, seed=2, agreement=8.0), []
    for limit in range(1, 16):
        found, alone = (
            run(
                DraftEngines(model, [4], [64], split=split),
                draft_request(rule, prompt_ids=tuple(range(1, 15)), max_tokens=limit,
                              banned_ids=(0,)),
                max_position=20,
            )
            for rule in ("draft_verify", "next_token")
        )  # fmt: skip
        assert found.approximate == alone.approximate == (14 + limit > 21)
        if not found.approximate:
            assert found.token_ids == alone.token_ids
        flagged.append(found.approximate)
    assert set(flagged) == {False, True}


def test_draws_are_keyed_by_places_in_the_text_also_when_a_window_has_moved():
    class Watched(NumpyDrafts):
        places = ()

        def begin_drafts(self, drafts, *, start, position):
            self.places += ((start, position),)
            super().begin_drafts(drafts, start=start, position=position)

    watched, engines = Watched(), DraftEngines(Model(30, seed=2, agreement=8.0), [3], [24])
    asked = draft_request(
        prompt_ids=tuple(range(1, 20)), max_tokens=60, banned_ids=(0,), temperature=1.0
    )
    found = generate(load_model(draft_manifest(engines), engines, OpsWith(DRAFTS, watched)), asked)
    (first, second, *others) = watched.places
    assert (found.approximate, first) == (True, (18, 18))
    for start, position in (second, *others):
        assert start == 11  # half of the window is read again
        assert position > 23  # while the text goes on


@pytest.mark.parametrize("rule", ["draft_verify", "next_token"])
@pytest.mark.parametrize("split", [False, True])
def test_a_request_that_begins_with_what_is_cached_computes_only_the_rest(rule, split):
    model = Model(30, seed=2, agreement=2.0)
    engines = DraftEngines(model, [3], split=split)
    manifest = draft_manifest(engines)
    asked = draft_request(rule, max_tokens=9, banned_ids=(0,))
    first = Generation(load_model(manifest, engines), asked)
    for _ in first:
        pass
    cached, text = first.held.ids, first.result.token_ids
    assert cached == text[: len(cached)]
    assert len(cached) >= len(text) - 1
    prompt = (*text, 4, 5, 6)
    engines.runs.clear()
    again = draft_request(
        rule, prompt_ids=prompt, max_tokens=9, num_cached=len(cached), banned_ids=(0,)
    )
    found = generate(load_model(manifest, engines), again)
    assert list(found.token_ids) == causal_text(model, prompt, 9, banned=(0,), stops=())[0]
    assert engines.runs[0][3] == len(cached)
    slid = generate(load_model(manifest, engines), draft_request(max_tokens=9))
    assert slid.token_ids == first.result.token_ids[: len(slid.token_ids)]


def test_drafts_are_shown_as_provisional_until_they_are_kept_or_replaced():
    model = Model(30, seed=6, agreement=3.0)
    engines = DraftEngines(model, [4])
    asked = draft_request(max_tokens=15, provisional=True)
    result, _, spans = observed(engines, asked)
    known = 5
    for span in spans:
        if span.committed:
            assert span.position == known
            known += len(span.token_ids)
        else:
            assert span.position == known
            assert known + len(span.token_ids) <= 20
            assert span.fixed is not None
            masks = [token == model.mask for token in span.token_ids]
            assert masks == [not fixed for fixed in span.fixed]
    assert known == len(result.token_ids)
    assert any(not span.committed and all(span.fixed) for span in spans)

    class Shown:
        given_ids, nfe, fills = asked.prompt_ids, 1, True  # so that nothing is cut off

        def __iter__(self):
            return iter(spans)

    *_, (_, canvas) = canvases(Shown(), model.mask)
    left = {state for state, _ in canvas.runs()}
    assert "provisional" not in left


@pytest.mark.parametrize("split", [False, True])
def test_the_likelihood_is_that_of_the_causal_rows(split):
    model = Model(30, seed=6)
    engines = DraftEngines(model, [2, 3], [16, 64], split=split)
    ids = np.random.default_rng(0).integers(1, 28, size=50).astype(np.int32)
    manifest = draft_manifest(engines, decoding={"block_size": 3})
    found = evaluate_ids(load_model(manifest, engines), ids, context=40)
    logits = model.logits(ids[:40], np.arange(40), np.tri(40))
    logits[:, -2:] = -np.inf
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    nats = -np.log(shares[np.arange(39), ids[1:40]])
    family = find_family("tidar")
    (rows,) = family.bound(load_model(manifest, engines), [ids[:40]], seed=0, samples=range(2))
    assert np.allclose(rows[:, 1:], nats, atol=1e-4)
    assert found.num_samples == 1


def test_what_cannot_be_decoded_is_refused_in_a_line():
    model = Model(30, seed=6)
    engines = DraftEngines(model, [2, 3])
    for fields, words in (
        ({"block_size": 4}, "no graph of block size 4; choose from 2, 3"),
        ({"block_size": 12}, "no graph of block size 12; choose from 2, 3"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(engines, draft_request(**fields))
    with pytest.raises(ConfigError, match=r"block_size has no effect on rule next_token"):
        run(engines, draft_request("next_token", block_size=2))
    with pytest.raises(ConfigError, match="fill gaps"):
        run(engines, draft_request(template_ids=(0, 29)))
    with pytest.raises(ConfigError, match="mask or padding"):
        run(engines, draft_request(prompt_ids=(0, 29)))
    with pytest.raises(ConfigError, match="next_token"):
        run(DraftEngines(model, []), draft_request())
    with pytest.raises(ConfigError, match="logit_shift 0"):
        run(engines, draft_request(), logit_shift=0)
    with pytest.raises(ConfigError, match="no mask token"):
        run(engines, draft_request(), mask_token_id=None)
    with pytest.raises(ConfigError, match="beta has no effect on rule next_token"):
        draft_request("next_token", beta=0.5)
    with pytest.raises(ConfigError, match="beta must be"):
        draft_request(beta=1.5)


def test_the_baseline_leaves_the_bundles_block_size_and_beta_out():
    engines = DraftEngines(Model(30), [2, 3])
    manifest = draft_manifest(engines, decoding={"block_size": 3, "beta": 0.5})
    assert decoding_settings(manifest, {}) == DraftVerify(block_size=3, beta=0.5)
    assert decoding_settings(manifest, {"rule": "next_token"}) == NextToken()
    assert decoding_settings(manifest, {"beta": 0.25}) == DraftVerify(block_size=3, beta=0.25)


def test_block_sizes_are_those_of_drafts_and_positions_those_of_the_cache():
    engines = DraftEngines(Model(30), [2, 3], [16, 64])
    manifest = draft_manifest(engines)
    found = decoding_blocks(manifest)
    contexts = {block: [spec.context for spec in buckets] for block, buckets in found.items()}
    assert contexts == {2: [16, 64], 3: [16, 64]}
    settings = decoding_settings(manifest, {})
    assert DraftFamily().positions(manifest, engines.specs, settings) == 64
    short = draft_manifest(engines, max_position=40)
    assert DraftFamily().positions(short, engines.specs, settings) == 40
