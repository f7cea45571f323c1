"""TiDAR's loop: equal to causal decoding of the same weights, whatever the drafts are worth."""

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.evaluate import evaluate_ids
from dlm_edge.runtime.families import FAMILIES, decoding_blocks, decoding_settings
from dlm_edge.runtime.families.tidar import DraftFamily
from dlm_edge.runtime.families.tidar_layout import draft_layout, draft_rows, open_layout
from dlm_edge.runtime.frames import canvases
from dlm_edge.runtime.generate import Generation, generate
from dlm_edge.runtime.ops.numpy_ops import NumpyOps
from draft_engines import DraftEngines, Model, draft_manifest, draft_request


def run(engines, asked, **fields):
    return generate(draft_manifest(engines, **fields), engines, NumpyOps(), asked)


def observed(engines, asked, **fields):
    """The result, every graph run, and every span."""
    runs, spans = [], []
    generation = Generation(
        draft_manifest(engines, **fields), engines, NumpyOps(), asked, observer=runs.append
    )
    spans.extend(generation)
    return generation.result, runs, spans


def causal_text(model, prompt, max_tokens, *, banned=(), stops=(0,)):
    """Greedy, from scratch for every token: (ids, whether it ended)."""
    text = list(prompt)
    while len(text) < len(prompt) + max_tokens:
        row = model.next_row(text)
        row[[model.vocab - 1, model.vocab - 2, *banned]] = -np.inf
        token = int(row.argmax())
        if token in stops:
            return text, True
        text.append(token)
    return text, False


def random_case(number):
    rng = np.random.default_rng(number)
    vocab = int(rng.integers(6, 40))
    model = Model(vocab, seed=number, agreement=float(rng.choice([0.5, 2.0, 6.0])))
    prompt = (0, *rng.integers(1, vocab - 2, size=rng.integers(0, 30)).tolist())
    block = int(rng.choice([1, 2, 3, 4, 5]))
    return model, prompt, block, bool(rng.integers(2))


@pytest.mark.parametrize("batch", range(7))
def test_greedy_texts_are_those_of_causal_decoding_of_the_same_weights(batch):
    tokens = steps = 0
    for number in range(30 * batch, 30 * batch + 30):
        model, prompt, block, split = random_case(number)
        expected, ended = causal_text(model, prompt, 24)
        asked = draft_request(prompt_ids=prompt)
        found, runs, _ = observed(DraftEngines(model, [block], split=split), asked)
        alone = draft_request("next_token", prompt_ids=prompt)
        baseline = run(DraftEngines(model, [block], split=split), alone)
        for result in (found, baseline):
            assert list(result.token_ids) == expected
            assert result.finish_reason == ("end" if ended else "length")
        steps += sum(one.phase == "verify" for one in runs)
        tokens += len(found.new_token_ids)
    assert tokens > 1.4 * steps  # where no draft is ever kept, nothing would be proved


def literal_mask(block):
    """The table of the paper's decoding step, word by word."""
    names = [("draft", i) for i in range(block)]
    names += [("mask", r, j) for r in range(1, block + 1) for j in range(block)]
    seen = np.zeros((len(names), len(names)), np.float32)
    for row, query in enumerate(names):
        for column, key in enumerate(names):
            if key[0] == "draft":
                # draft i sees drafts 0..i, proposal r drafts 0..r-1
                seen[row, column] = key[1] <= (query[1] if query[0] == "draft" else query[1] - 1)
            else:
                seen[row, column] = query[0] == "mask" and query[1] == key[1]
    positions = [n[1] if n[0] == "draft" else n[1] + n[2] for n in names]
    return positions, seen


@pytest.mark.parametrize("block", [1, 2, 3, 8, 12])
def test_the_step_sees_what_the_paper_says(block):
    positions, seen = literal_mask(block)
    layout = draft_layout(block)
    assert layout.offsets.tolist() == positions
    assert np.array_equal(layout.visible, seen)
    assert (layout.offsets.dtype, layout.visible.dtype) == (np.int32, np.float32)
    assert len(positions) == draft_rows(block)


def test_the_example_of_three_drafts_is_the_one_worked_out_by_hand():
    rows = ["100000000000", "110000000000", "111000000000"]
    rows += ["100111000000"] * 3 + ["110000111000"] * 3 + ["111000000111"] * 3
    layout = draft_layout(3)
    assert ["".join("01"[int(x)] for x in row) for row in layout.visible] == rows
    assert (3 + layout.offsets).tolist() == [3, 4, 5, 4, 5, 6, 5, 6, 7, 6, 7, 8]


def test_the_first_run_shows_masks_the_text_and_nobody_the_masks():
    layout = open_layout(2, 3)
    rows = ["100000", "110000", "111000", "111110", "111110", "000001"]
    assert ["".join("01"[int(x)] for x in row) for row in layout.visible] == rows
    assert layout.offsets.tolist() == list(range(6))


def slow_text(model, prompt, max_tokens, block, beta):
    """The same decoding by whole forwards without a cache, and how many drafts each step kept."""
    text, kept = list(prompt), []
    forbidden = [model.vocab - 1, model.vocab - 2]

    def pick(row):
        row = row.copy()
        row[forbidden] = -np.inf
        return int(row.argmax())

    def proposal(known):
        """Rows of B masks behind a text: the causal row before them, and theirs."""
        ids = [*known, *[model.mask] * block]
        seen = np.tri(len(ids))
        seen[len(known) :, len(known) :] = 1
        rows = model.logits(ids, np.arange(len(ids)), seen)
        return rows[len(known) - 1], rows[len(known) :]

    causal, masks = proposal(text)
    drafts = [pick(beta * causal + (1 - beta) * masks[0]), *map(pick, masks[1:])]
    while drafts[0] != 0 and len(text) + 1 < len(prompt) + max_tokens:
        count = 1
        while True:
            causal, masks = proposal([*text, *drafts[:count]])
            token = pick(beta * causal + (1 - beta) * masks[0])
            if count == block or drafts[count] != token or token == 0:
                break
            count += 1
        kept.append(count)
        text += drafts[:count]
        drafts = [token, *map(pick, masks[1:])]
    if drafts[0] != 0:
        text.append(drafts[0])
    return text[: len(prompt) + max_tokens], kept


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.7, 1.0])
def test_any_beta_is_that_of_whole_forwards_without_a_cache(beta):
    num_kept = set()
    for number in range(12):
        model, prompt, block, split = random_case(1000 + number)
        expected, kept = slow_text(model, prompt, 16, block, beta)
        asked = draft_request(prompt_ids=prompt, beta=beta, max_tokens=16)
        engines = DraftEngines(model, [block], split=split)
        found, runs, _ = observed(engines, asked)
        assert list(found.token_ids) == expected
        starts = [start for name, rows, _, start in engines.runs if rows == draft_rows(block)]
        starts = starts[-len(kept) :] if kept else []
        assert np.diff(starts).tolist() == kept[:-1]
        assert sum(one.phase == "verify" for one in runs) == len(kept)
        num_kept |= {*kept}
    assert len(num_kept) > 1


def test_the_cache_grows_by_the_kept_drafts_also_when_all_are_kept():
    model = Model(20, seed=4, agreement=1e4)
    engines = DraftEngines(model, [4])
    manifest = draft_manifest(engines)
    asked = draft_request(max_tokens=40, banned_ids=(0,))  # which nothing then ends
    generation = Generation(manifest, engines, NumpyOps(), asked)
    lengths, before = [], 0
    for span in generation:
        if span.committed:
            cached = len(generation.cached_ids)
            known = span.position + len(span.token_ids)
            if known == 45:  # of the last drafts, some are beyond the limit
                break
            assert cached == known - 1  # all but the newest
            rows = engines.kv[:cached]
            assert np.abs(rows).max() < 1e3  # nothing that nobody stored
            assert (engines.kv[cached:] == 1e6).all()  # and nothing behind it
            lengths.append(cached - before)
            before = cached
    assert set(lengths[1:]) == {4}


def counts_of(asked_of, model, num, depth):
    """How often each continuation of `depth` tokens comes up."""
    found = {}
    for index in range(num):
        asked = asked_of(index)
        result = run(DraftEngines(model, [3], [64]), asked)
        key = result.new_token_ids[:depth]
        found[key] = found.get(key, 0) + 1
    return found


def chances_of(model, prompt, depth, heat):
    """Exact chances of every continuation: {ids: p}; a text that ends is shorter."""
    done, open_ = {}, {(): 1.0}
    for _ in range(depth):
        following = {}
        for ids, chance in open_.items():
            row = model.next_row([*prompt, *ids])
            row[[model.vocab - 1, model.vocab - 2]] = -np.inf
            p = np.exp((row - row.max()) / heat)
            for token in np.flatnonzero(p):
                place = done if token == 0 else following
                key = ids if token == 0 else (*ids, int(token))
                place[key] = place.get(key, 0.0) + chance * p[token] / p.sum()
        open_ = following
    return {**done, **open_}


@pytest.mark.parametrize(("agreement", "heat"), [(0.0, 1.0), (1.5, 0.8)])
def test_sampled_texts_have_the_causal_models_distribution(agreement, heat):
    """Chi-square over whole continuations, 1 in 1000 of which would fail a right program."""
    model = Model(6, seed=11, agreement=agreement, scale=0.8)
    prompt, num, depth = (0, 2, 1), 2000, 3

    def asked(index):
        return draft_request(
            prompt_ids=prompt, temperature=heat, max_tokens=depth, sample_index=index
        )

    found = counts_of(asked, model, num, depth)
    chances = chances_of(model, prompt, depth, heat)
    assert set(found) <= set(chances)
    assert sum(chances.values()) == pytest.approx(1)
    rare = [key for key, chance in chances.items() if chance * num < 5]
    cells = [(found.get(k, 0), p * num) for k, p in chances.items() if k not in rare]
    cells.append((sum(found.get(k, 0) for k in rare), sum(chances[k] for k in rare) * num))
    statistic = sum((n - e) ** 2 / e for n, e in cells if e > 0)
    freedom = len(cells) - 1
    # Wilson and Hilferty's approximation of the 99.9 % quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < limit
    assert freedom > 10


def test_top_k_and_top_p_bound_what_can_be_drawn():
    model = Model(12, seed=3)
    for index in range(40):
        asked = draft_request(temperature=2.0, top_k=2, sample_index=index, max_tokens=12)
        text = list(run(DraftEngines(model, [3], [64]), asked).token_ids)
        for end in range(5, len(text)):
            row = model.next_row(text[:end])[:-2]
            assert row[text[end]] >= np.sort(row)[-2]


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


@pytest.mark.parametrize("rule", ["draft_verify", "next_token"])
@pytest.mark.parametrize("split", [False, True])
def test_a_request_that_begins_with_what_is_cached_computes_only_the_rest(rule, split):
    model = Model(30, seed=2, agreement=2.0)
    engines = DraftEngines(model, [3], split=split)
    manifest = draft_manifest(engines)
    asked = draft_request(rule, max_tokens=9, banned_ids=(0,))
    first = Generation(manifest, engines, NumpyOps(), asked)
    for _ in first:
        pass
    cached, text = first.cached_ids, first.result.token_ids
    assert cached == text[: len(cached)]
    assert len(cached) >= len(text) - 1
    prompt = (*text, 4, 5, 6)
    engines.runs.clear()
    again = draft_request(
        rule, prompt_ids=prompt, max_tokens=9, num_cached=len(cached), banned_ids=(0,)
    )
    found = generate(manifest, engines, NumpyOps(), again)
    assert list(found.token_ids) == causal_text(model, prompt, 9, banned=(0,), stops=())[0]
    assert engines.runs[0][3] == len(cached)
    slid = generate(manifest, engines, NumpyOps(), draft_request(max_tokens=9))
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
        given_ids, nfe = asked.prompt_ids, 1

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
    found = evaluate_ids(manifest, engines, ids, context=40)
    logits = model.logits(ids[:40], np.arange(40), np.tri(40))
    logits[:, -2:] = -np.inf
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    nats = -np.log(shares[np.arange(39), ids[1:40]])
    family = FAMILIES["tidar"]
    (rows,) = family.bound(manifest, engines, NumpyOps(), [ids[:40]], seed=0, samples=range(2))
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
    with pytest.raises(ConfigError, match="block_size has no effect on rule next_token"):
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
    assert decoding_settings(manifest, {}).block_size == 3
    plain = decoding_settings(manifest, {"rule": "next_token"})
    assert (plain.block_size, plain.beta) == (None, None)
    assert decoding_settings(manifest, {"beta": 0.25}).beta == 0.25


def test_block_sizes_are_those_of_drafts_and_positions_those_of_the_cache():
    engines = DraftEngines(Model(30), [2, 3], [16, 64])
    manifest = draft_manifest(engines)
    assert decoding_blocks(manifest) == {2: (16, 64), 3: (16, 64)}
    assert DraftFamily().positions(manifest) == 64
    assert DraftFamily().positions(draft_manifest(engines, max_position=40)) == 40
