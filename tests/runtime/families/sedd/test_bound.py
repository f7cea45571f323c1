"""The score-entropy bound against exact likelihoods and against its own integral."""

from itertools import pairwise, product

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.sedd.bound import SPLIT, draw_hits
from dlm_edge.runtime.families.table import find_family, load_model
from dlm_edge.runtime.measure.evaluate import evaluate_ids
from dlm_edge.runtime.noise.schedule import schedule_from_json
from dlm_edge.runtime.noise.score_entropy import absorb_entropy, prior_nats, uniform_entropy
from score_engines import ScoreEngines, joint_score, kernel, score_manifest

K, V = 3, 5  # end of text 0, two more, padding 3, mask 4
MASK = V - 1
NOISES = [
    {"name": "geometric", "sigma_min": 1e-4, "sigma_max": 20.0},
    {"name": "loglinear", "eps": 1e-3},
]
GRAPHS = ["uniform", "absorb"]


def correlated(length=3):
    joint = np.random.default_rng(5).gamma(0.6, size=(K,) * length)
    return joint / joint.sum()


def totals_of(score, graph, text, samples, **fields):
    engines = ScoreEngines(score, [len(text)], V)
    manifest = score_manifest(engines, graph, pad_token_id=3, **fields)
    bounds = find_family("sedd").bound(
        load_model(manifest, engines),
        [np.array(text, np.int32)],
        seed=3,
        samples=range(samples),
    )
    nats = next(iter(bounds))
    assert (nats[:, 0] == 0).all()
    return nats.sum(axis=1), engines


def mean_and_error(totals):
    pairs = (totals[0::2] + totals[1::2]) / 2
    return pairs.mean(), pairs.std() / np.sqrt(len(pairs))


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_bound_of_the_exact_score_is_the_likelihood(graph, noise):
    joint = correlated()
    for text in ((0, 2, 1, 1), (0, 0, 2, 0)):
        totals, _ = totals_of(joint_score(joint, graph, V), graph, text, 1500, noise_schedule=noise)
        mean, error = mean_and_error(totals)
        assert abs(mean + np.log(joint[text[1:]])) < 4 * error + 2e-3


def wrong_score(ids, sigma):
    """No model's score: smooth in sigma, of any size, different at every canvas and position."""
    place = np.arange(len(ids))[:, None]
    token = np.arange(V)[None]
    whole = float((ids * (1 + np.arange(len(ids)))).sum())
    rows = 0.7 * np.sin(1.3 * token + 2.1 * place + 0.9 * whole) - 0.5
    if MASK in ids:
        rows = rows - np.log(np.expm1(sigma))
    rows[np.arange(len(ids)), ids] = 0
    return rows


def integral(text, last):
    """The uniform bound by quadrature over sigma and by enumeration of every noised text."""
    clean, total = text[1:], 0.0
    edges = np.concatenate([[0.0], np.geomspace(1e-7, last, 500)])
    for low, high in pairwise(edges):
        sigma = (low + high) / 2
        matrix, value = kernel("uniform", K, sigma), 0.0
        for noisy in product(range(K), repeat=len(clean)):
            chance = np.prod([matrix[a, b] for a, b in zip(clean, noisy, strict=True)])
            ids = np.array([text[0], *noisy])
            rows = wrong_score(ids, sigma)[1:].astype(np.float64)
            value += chance * sum(map(entropy_of, rows, noisy, clean, [sigma] * len(clean)))
        total += value * (high - low)
    return total


def entropy_of(row, x, x0, sigma):
    others, linear = np.arange(K) != x, row[:K]
    return uniform_entropy(
        np.exp(linear[others]).sum(), linear[others].sum(), row[x0], float(x != x0), sigma, K
    )


@pytest.mark.parametrize("last", [20.0, 1.0])
def test_the_draws_of_the_uniform_bound_add_up_to_its_integral(last):
    # At a largest noise of 1 more than a third of the text is left: the prior term is large.
    text, noise = (0, 2, 1), NOISES[0] | {"sigma_max": last}
    totals, _ = totals_of(wrong_score, "uniform", text, 8_000, noise_schedule=noise)
    mean, error = mean_and_error(totals)
    exact = integral(text, last) + 2 * prior_nats(last, K)
    assert error < 0.03 * exact
    assert abs(mean - exact) < 4 * error


def test_the_draws_of_the_absorbing_bound_add_up_to_its_integral():
    text = (0, 2, 1)
    totals, _ = totals_of(wrong_score, "absorb", text, 6_000)
    mean, error = mean_and_error(totals)
    # With ratios p_y / (e^sigma - 1), SE odds is free of sigma: 1 / k per count k, by enumeration.
    exact = 0.0
    for masked, weight in (((1,), 0.5), ((2,), 0.5), ((1, 2), 0.5)):
        ids = np.array(text)
        ids[list(masked)] = MASK
        for place in masked:
            row = wrong_score(ids, np.log(2.0))[place]
            exact += weight * absorb_entropy(np.exp(row[:K]).sum(), row[text[place]], np.log(2.0))
    assert abs(mean - exact) < 4 * error


def test_hits_and_noise_of_a_draw_are_jointly_those_of_independent_hits():
    """Weighted draws must give the integral of any function of (hits, sigma): tried with three."""
    rng, count, last = np.random.default_rng(0), 5, 8.0
    functions = (
        lambda k, sigma: 1.0 / (1 + sigma) ** 2,
        lambda k, sigma: k * np.exp(-2 * sigma),
        lambda k, sigma: float(k == 0) * np.exp(-sigma),
    )
    sigmas = (np.arange(200_000) + 0.5) / 200_000 * last
    moved = -np.expm1(-sigmas)
    means = (
        1.0 / (1 + sigmas) ** 2,
        count * moved * np.exp(-2 * sigmas),
        (1 - moved) ** count * np.exp(-sigmas),
    )
    draws = [draw_hits(rng.random(count + 1), (i + 0.5) / 20_000, last) for i in range(20_000)]
    assert {len(d.hit) for d in draws} == set(range(count + 1))
    for function, mean in zip(functions, means, strict=True):
        values = [d.weight * function(len(d.hit), d.sigma) if d.weight else 0.0 for d in draws]
        assert np.mean(values) == pytest.approx(mean.mean() * last, rel=0.03)
    assert max(d.sigma for d in draws if d.weight) == pytest.approx(last, rel=0.01)
    small = [draw_hits(rng.random(6), (i + 0.5) / 999, SPLIT / 2) for i in range(999)]
    assert max(d.sigma for d in small if d.weight) <= SPLIT / 2


def test_equal_seeds_mask_what_the_masked_models_bound_masks():
    from table_engines import TableEngines, make_manifest

    windows = [np.array([0, 1, 2, 1, 2, 1, 1, 2], np.int32)] * 3
    engines = ScoreEngines(wrong_score, [8], V)
    masked = TableEngines(lambda prefix, block: np.zeros((len(block), V)), [(8, 8)], V)
    for family, used, manifest in (
        ("sedd", engines, score_manifest(engines, "absorb", pad_token_id=3)),
        ("mdlm", masked, make_manifest(masked)),
    ):
        for _ in find_family(family).bound(
            load_model(manifest, used), windows, seed=5, samples=range(4)
        ):
            pass
    assert [run[2] for run in engines.runs] == [run[3] for run in masked.runs]


@pytest.mark.parametrize("graph", GRAPHS)
def test_samples_do_not_depend_on_which_others_are_drawn(graph):
    engines = ScoreEngines(wrong_score, [6], V)
    manifest = score_manifest(engines, graph, pad_token_id=3)
    windows = [np.array([0, 1, 2, 1, 2, 1], np.int32)] * 3

    def run(samples):
        model = load_model(manifest, engines)
        return np.stack(list(model.family.bound(model, windows, seed=1, samples=samples)))

    assert np.array_equal(run(range(6))[:, 2:], run(range(2, 6)))


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_text_is_measured_in_windows_of_the_largest_canvas(graph):
    joint = np.full((K,) * 3, K**-3.0)
    engines = ScoreEngines(joint_score(joint, graph, V), [2, 4], V)
    manifest = score_manifest(engines, graph, pad_token_id=3, max_position=4)
    ids = np.array([0, *([1, 2, 0] * 20)])
    result = evaluate_ids(load_model(manifest, engines), ids, max_samples=200)
    assert {block for block, _, _ in engines.runs} == {4}
    assert result.num_tokens == 60
    assert result.perplexity_low * 0.97 < K < result.perplexity_high * 1.03
    with pytest.raises(ConfigError, match="graph of that length"):
        evaluate_ids(load_model(manifest, engines), ids, context=3)
    # A canvas of another length than the block said to be read by would be a figure of neither.
    with pytest.raises(ConfigError, match="give --block 2"):
        evaluate_ids(load_model(manifest, engines), ids, context=2, block_size=4)


def test_the_schedule_of_the_bundle_only_decides_where_noise_ends():
    """Loglinear and geometric noise with the same sigma(1) have one bound, draw for draw."""
    last = schedule_from_json(NOISES[1]).sigma(1.0)
    same = {"name": "geometric", "sigma_min": 1e-3, "sigma_max": last}
    text = (0, 2, 1, 1)
    one, _ = totals_of(wrong_score, "uniform", text, 40, noise_schedule=NOISES[1])
    other, _ = totals_of(wrong_score, "uniform", text, 40, noise_schedule=same)
    assert np.allclose(one, other)
