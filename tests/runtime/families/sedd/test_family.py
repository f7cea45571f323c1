"""Sampling from exact scores gives back the joint; windows, gaps and conditions hold."""

from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
from dlm_edge.runtime.errors import BundleError, ConfigError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import decoding_settings, load_model
from dlm_edge.runtime.generate import Generation, generate
from dlm_edge.runtime.noise.schedule import schedule_from_json
from dlm_edge.runtime.noise.transition import transition_table
from dlm_edge.runtime.ops.host import NumpyOps
from rules import decoding
from score_engines import ScoreEngines, joint_score, score_manifest
from transition_rows import probabilities

K, V = 3, 4
MASK = V - 1
GEOMETRIC = {"name": "geometric", "sigma_min": 1e-4, "sigma_max": 20.0}
LOGLINEAR = {"name": "loglinear", "eps": 1e-3}


def correlated(length=3):
    """Texts of ids below 3, far from independent."""
    joint = np.random.default_rng(5).gamma(0.4, size=(K,) * length)
    return joint / joint.sum()


def sampled_distribution(joint, graph, predictor, noise, steps):
    """The exact distribution of what the sampler gives: every canvas carried through every step."""
    length = joint.ndim
    score = joint_score(joint, graph, V)
    table = transition_table(schedule_from_json(noise), graph, predictor, steps, K)
    states = np.arange(V) < K
    if graph == "absorb":
        now = {(MASK,) * length: 1.0}
    else:
        now = dict.fromkeys(product(range(K), repeat=length), K**-length)
    for row in table:
        after: Counter = Counter()
        for text, share in now.items():
            ids = np.array((0, *text))
            p = probabilities(score(ids, float(row[0]))[1:], ids[1:], row, states)
            if graph == "absorb":
                settled = ids[1:] != MASK
                p[settled] = np.eye(V)[ids[1:][settled]]
            places = [np.flatnonzero(line) for line in p]
            for target in product(*places):
                after[target] += share * np.prod([p[i, t] for i, t in enumerate(target)])
        now = {text: share for text, share in after.items() if share > 1e-12}
    out = np.zeros_like(joint)
    for text, share in now.items():
        out[text] += share
    return out


@pytest.mark.parametrize(
    ("graph", "noise", "predictor"),
    [
        ("uniform", GEOMETRIC, "tweedie"),
        ("uniform", LOGLINEAR, "tweedie"),
        ("uniform", GEOMETRIC, "euler"),
        ("absorb", LOGLINEAR, "tweedie"),
        ("absorb", GEOMETRIC, "tweedie"),
        ("absorb", LOGLINEAR, "euler"),
    ],
)
def test_the_joint_comes_back_and_more_steps_come_closer(graph, noise, predictor):
    joint, many = correlated(2), 512
    errors = [
        np.abs(sampled_distribution(joint, graph, predictor, noise, steps) - joint).sum() / 2
        for steps in (4, 16, 64, many)
    ]
    assert errors[-1] < 0.02
    assert all(later < 0.6 * before for before, later in pairwise(errors))


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
@pytest.mark.parametrize("predictor", ["tweedie", "euler"])
def test_the_loop_samples_what_its_steps_say(graph, predictor):
    """Through the whole loop, with few steps: the carried distribution, cut at the first end."""
    joint, steps, samples = correlated(3), 4, 1500
    engines = ScoreEngines(joint_score(joint, graph, V), [4], V)
    manifest, ops = score_manifest(engines, graph), NumpyOps()
    settings = decoding(rule=predictor, steps=steps)
    exact: Counter = Counter()
    for text, p in np.ndenumerate(sampled_distribution(joint, graph, predictor, LOGLINEAR, steps)):
        exact[text[: text.index(0)] if 0 in text else text] += p
    counts: Counter = Counter()
    for index in range(samples):
        asked = request(max_tokens=3, seed=1, sample_index=index, settings=settings)
        counts[generate(load_model(manifest, engines, ops), asked).new_token_ids] += 1
    assert set(counts) <= set(exact)
    cells = [(counts[text] - p * samples) ** 2 / (p * samples)
             for text, p in exact.items() if p * samples >= 4]  # fmt: skip
    assert sum(cells) < len(cells) + 4 * np.sqrt(2 * len(cells))


def request(**fields):
    return Request(**{"prompt_ids": (0,), "max_tokens": 9, "seed": 7, "sample_index": 2, **fields})


def hashed(vocab_size, graph="uniform"):
    """Log-scores that depend on every token and on sigma; end of text is rare."""
    table = np.random.default_rng(7).normal(size=(997, vocab_size)).astype(np.float32)
    table[:, 0] = -9

    def score(ids, sigma):
        whole = int(((ids.astype(np.int64) + 1) * (np.arange(len(ids)) * 7919 + 104729)).sum())
        rows = table[(whole + np.arange(len(ids)) * 31 + int(sigma * 1e4)) % 997].copy()
        if graph == "absorb":  # ratios of a normalised p to MASK
            rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True) + np.log(np.expm1(sigma))
        rows[np.arange(len(ids)), ids] = 0
        return rows

    return score


def run(graph, asked, lengths=(16, 32), vocab_size=40, ops=None, **fields):
    engines = ScoreEngines(hashed(vocab_size, graph), lengths, vocab_size)
    manifest = score_manifest(engines, graph, **fields)
    generation = Generation(load_model(manifest, engines, ops or NumpyOps()), asked)
    spans = list(generation)
    return generation.result, engines, spans


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_the_smallest_canvas_that_holds_the_text_is_taken(graph):
    for new, block in ((5, 16), (12, 16), (13, 32), (28, 32)):
        result, engines, _ = run(graph, request(prompt_ids=(0, 5, 6, 7), max_tokens=new))
        assert {length for length, _, _ in engines.runs} == {block}
        assert len(result.new_token_ids) == new
        assert not result.approximate
        settings = decoding(rule="tweedie", block_size=32)
        forced = run(graph, request(max_tokens=new, settings=settings))[1]
        assert {length for length, _, _ in forced.runs} == {32}


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_as_many_graph_runs_as_steps_each_told_its_noise(graph, steps):
    settings = decoding(rule="tweedie", steps=steps)
    result, engines, _ = run(graph, request(settings=settings), noise_schedule=GEOMETRIC)
    noise = schedule_from_json(GEOMETRIC)
    told = [sigma for _, sigma, _ in engines.runs]
    expected = [noise.sigma(1 - i / steps) for i in range(steps)]
    assert np.allclose(told, expected[: len(told)], rtol=1e-6)
    assert result.nfe == len(told) == steps or (graph == "absorb" and result.nfe < steps)


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_a_text_beyond_the_largest_canvas_goes_on_in_windows_over_its_tail(graph):
    result, engines, spans = run(graph, request(prompt_ids=(0, 5, 6), max_tokens=80))
    assert result.approximate
    assert len(result.new_token_ids) == 80
    text = result.token_ids
    starts, at = [], 0
    for span in spans:
        assert span.committed
        assert span.position + len(span.token_ids) <= len(text)
        assert text[span.position : span.position + len(span.token_ids)] == span.token_ids
    # 3 + 29, then 16 kept and 16 new three times, and 29 kept before the last 3.
    first = {}
    for _, _, ids in engines.runs:
        first.setdefault(len(starts), ids)
        if ids[:3] != at:
            at = ids[:3]
            starts.append(ids)
    kept = [text[0:3], text[16:32], text[32:48], text[48:64], text[51:80]]
    assert [ids[: len(known)] for ids, known in zip(starts, kept, strict=True)] == kept


def test_every_window_begins_with_noise_of_its_own():
    _, engines, _ = run("uniform", request(prompt_ids=(0, 5, 6), max_tokens=80))
    begins = [ids for (_, sigma, ids) in engines.runs if sigma == engines.runs[0][1]]
    assert len(begins) == 5
    # 16 tokens are kept of the windows in the middle: the rest is drawn by absolute position.
    assert len({ids[16:] for ids in begins[1:4]}) == 3


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_given_positions_never_change_and_gaps_see_both_sides(graph):
    template = (0, 5, 39, 39, 9, 10, 39, 11)
    asked = request(prompt_ids=(), max_tokens=0, template_ids=template)
    result, engines, _ = run(graph, asked)
    for block, _, ids in engines.runs:
        assert block == 16
        assert all(ids[i] == t for i, t in enumerate(template) if t != 39)
        assert ids[8] == 0  # end of text stands behind it
        if graph == "uniform":
            assert 39 not in ids
    assert len(result.token_ids) == 8
    assert not {0, 39} & set(result.token_ids[1:])
    prompt = (0, *range(3, 12))
    for _, _, ids in run(graph, request(prompt_ids=prompt, max_tokens=6))[1].runs:
        assert ids[:10] == prompt
    same = run(graph, request(prompt_ids=(), max_tokens=0, template_ids=(0, 4, 5)))
    assert (same[0].token_ids, same[0].nfe) == ((0, 4, 5), 0)


def test_the_uniform_graph_corrects_tokens_and_the_absorbing_one_settles_them():
    changes = {}
    for graph in ("uniform", "absorb"):
        settings = decoding(rule="tweedie", steps=30)
        spans = run(graph, request(settings=settings, max_tokens=15, provisional=True))[2]
        shown = [span for span in spans if not span.committed]
        masked = [np.array(span.fixed) for span in shown]
        texts = [np.array(span.token_ids) for span in shown]
        pairs = list(zip(texts, texts[1:], masked, strict=False))
        changes[graph] = sum(int(((a != b) & fixed).sum()) for a, b, fixed in pairs)
        committed = [span for span in spans if span.committed]
        if graph == "uniform":
            assert all(fixed.all() for fixed in masked)
            assert len(committed) == 1  # nothing is certain before the last step
        else:
            assert not masked[0].all()
    assert changes["uniform"] > 15
    assert changes["absorb"] == 0


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_texts_end_at_the_first_end_token_and_never_hold_mask_or_missing_ids(graph):
    def ending(ids, sigma):
        rows = hashed(40, graph)(ids, sigma)
        rows[:, 0] = rows.max(axis=1) - 1
        rows[np.arange(len(ids)), ids] = 0
        return rows

    ended = 0
    for index in range(12):
        engines = ScoreEngines(ending, [32], 40)
        asked = request(sample_index=index, max_tokens=20, banned_ids=(7, 8))
        result = generate(load_model(score_manifest(engines, graph), engines), asked)
        assert not {0, 7, 8, 39} & set(result.new_token_ids)
        assert (result.finish_reason == "end") == (len(result.new_token_ids) < 20)
        ended += result.finish_reason == "end"
    assert ended > 3


def test_equal_seeds_give_equal_texts_and_samples_differ():
    texts = [run("uniform", request(sample_index=i))[0].token_ids for i in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_settings_of_other_families_are_refused_by_name():
    engines = ScoreEngines(hashed(40), [16], 40)
    manifest = score_manifest(engines, "uniform")
    assert decoding_settings(manifest, {"steps": 8}).name == "tweedie"
    assert decoding_settings(manifest, {"rule": "euler", "top_p": 0.9}).sampling.temperature == 1.0
    for overrides, words in (
        (
            {"rule": "threshold"},
            "family sedd has no rule 'threshold', only tweedie, euler",
        ),
        ({"rule": "next_token"}, "tweedie, euler"),
        ({"threshold": 0.9}, "threshold has no effect on rule tweedie"),
        ({"repetition_penalty": 1.3}, "repetition_penalty has no effect"),
        ({"steps": 0}, "steps must be"),
        ({"temperature": 0.0, "top_p": 0.5}, "no effect at temperature 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            decoding_settings(manifest, overrides)
    with pytest.raises(BundleError, match="own decoding settings"):
        decoding_settings(score_manifest(engines, "uniform", decoding={"rule": "factor"}), {})


def test_what_cannot_be_served_is_refused():
    for fields, changes in (
        ({"prompt_ids": (0, 39)}, {}),
        ({"prompt_ids": ()}, {}),
        ({"max_tokens": -1}, {}),
        ({"settings": decoding(rule="threshold")}, {}),
        ({"settings": decoding(rule="tweedie", block_size=8)}, {}),
        ({"template_ids": (0,) * 40}, {}),
        ({}, {"model": {"graph": "ring"}}),
        ({}, {"model": {}}),
        ({}, {"mask_token_id": None}),
    ):
        with pytest.raises(ConfigError):
            run("uniform", request(**fields), **changes)
