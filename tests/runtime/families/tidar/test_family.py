"""TiDAR's loop: equal to causal decoding of the same weights, whatever the drafts are worth."""

import numpy as np
import pytest
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.families.tidar.layout import draft_layout, draft_rows, open_layout
from dlm_edge.runtime.generate import Generation
from draft_engines import (
    DraftEngines,
    Model,
    causal_text,
    draft_manifest,
    draft_request,
    observed,
    run,
)


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
    generation = Generation(load_model(manifest, engines), asked)
    lengths, before = [], 0
    for span in generation:
        if span.committed:
            cached = len(generation.held.ids)
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


def shares_of(model, text, *, temperature, top_k=None, top_p=1.0, beta=1.0):
    """The distribution of the token behind a text, (vocab,), by a forward without a cache."""
    ids = [*text, *[model.mask] * 3]
    seen = np.tri(len(ids))
    seen[len(text) :, len(text) :] = 1
    rows = model.logits(ids, np.arange(len(ids)), seen)
    row = beta * rows[len(text) - 1] + (1 - beta) * rows[len(text)]
    row[[model.vocab - 1, model.vocab - 2]] = -np.inf
    p = np.exp((row - row.max()) / temperature)
    order = np.argsort(-p, kind="stable")[:top_k]
    before = np.cumsum(p[order]) - p[order]
    order = order[before < top_p * p[order].sum()]
    kept = np.zeros(len(p))
    kept[order] = p[order] / p[order].sum()
    return kept


def chances_of(model, prompt, depth, **heat):
    """Exact chances of every continuation: {ids: p}; a text that ends is shorter."""
    done, open_ = {}, {(): 1.0}
    for _ in range(depth):
        following = {}
        for ids, chance in open_.items():
            shares = shares_of(model, [*prompt, *ids], **heat)
            for token in np.flatnonzero(shares):
                place = done if token == 0 else following
                key = ids if token == 0 else (*ids, int(token))
                place[key] = place.get(key, 0.0) + chance * shares[token]
        open_ = following
    return {**done, **open_}


@pytest.mark.parametrize(
    ("agreement", "depth", "heat"),
    [
        (0.0, 3, {"temperature": 1.0}),
        (1.5, 4, {"temperature": 0.8}),
        (0.0, 4, {"temperature": 0.4}),
        (0.7, 4, {"temperature": 1.5, "top_k": 3}),
        (0.7, 4, {"temperature": 2.0, "top_p": 0.85}),
        (0.7, 3, {"temperature": 1.0, "top_k": 3, "top_p": 0.9, "beta": 0.5}),
    ],
    ids=str,
)
def test_sampled_texts_have_the_causal_models_distribution(agreement, depth, heat):
    """Chi-square over whole continuations, 1 in 1000 of which would fail a right program.

    Below beta 1 the distribution is that of both heads' logits behind the same text.
    """
    model = Model(6, seed=11, agreement=agreement, scale=0.8)
    prompt, num = (0, 2, 1), 2000

    def asked(index):
        return draft_request(prompt_ids=prompt, max_tokens=depth, sample_index=index, **heat)

    found = counts_of(asked, model, num, depth)
    chances = chances_of(model, prompt, depth, **heat)
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
