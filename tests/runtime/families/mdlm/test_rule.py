"""The update rule against exact distributions: an exact denoiser must give back its joint."""

from collections import Counter

import numpy as np
import pytest
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.mdlm.steps import unmask_chances
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import generate
from rules import decoding
from table_engines import TableEngines, joint_model, make_manifest

V = 8
MASK = V - 1


def correlated_joint() -> np.ndarray:
    """Texts of four ids below 4 that begin with 0; 0 (end of text) does not occur again."""
    joint = np.zeros((4,) * 4)
    joint[0, 1:, 1:, 1:] = np.random.default_rng(5).gamma(0.4, size=(3, 3, 3))
    return joint / joint.sum()


def sampled_counts(rule: str, block: int, samples: int, **settings) -> Counter:
    cache: dict = {}
    exact = joint_model(correlated_joint(), MASK, V)

    def remembered(prefix, ids):
        key = (tuple(prefix), tuple(ids))
        if key not in cache:
            cache[key] = exact(prefix, ids)
        return cache[key]

    engines = TableEngines(remembered, [(block, 8)], V)
    model = load_model(make_manifest(engines), engines)
    chosen = decoding(rule=rule, temperature=1.0, **settings)
    return Counter(
        generate(
            model,
            Request(prompt_ids=(0,), max_tokens=3, seed=0, sample_index=i, settings=chosen),
        ).token_ids
        for i in range(samples)
    )  # fmt: skip


def chi_square(counts: Counter, joint: np.ndarray, samples: int) -> tuple[float, int]:
    cells = [(counts[text] - p * samples) ** 2 / (p * samples)
             for text, p in np.ndenumerate(joint) if p * samples >= 4]  # fmt: skip
    return sum(cells), len(cells)


@pytest.mark.parametrize(
    ("rule", "block", "settings"),
    [
        ("first_hitting", 4, {}),
        ("first_hitting", 2, {}),
        ("random", 4, {}),
        ("low_confidence", 2, {}),
        ("ancestral", 4, {"steps": 400}),
    ],
)
def test_one_token_at_a_time_samples_the_joint_exactly(rule, block, settings):
    """Rules that pick one position without looking at drawn tokens are exact; `low_confidence`
    looks, so only its one-position blocks (here the first, whose other id is given) are."""
    if rule == "low_confidence":
        block = 1
    samples = 1500
    counts = sampled_counts(rule, block, samples, **settings)
    statistic, cells = chi_square(counts, correlated_joint(), samples)
    assert statistic < cells + 4 * np.sqrt(2 * cells)


def test_few_ancestral_steps_lose_the_correlations_but_keep_the_marginals():
    samples = 1500
    counts = sampled_counts("ancestral", 4, samples, steps=1)
    joint = correlated_joint()
    for position in (1, 2, 3):
        exact = joint.sum(axis=tuple(axis for axis in range(4) if axis != position))
        drawn = np.zeros(4)
        for text, count in counts.items():
            drawn[text[position]] += count
        assert np.allclose(drawn / samples, exact, atol=0.06)
    statistic, cells = chi_square(counts, joint, samples)
    assert statistic > cells + 10 * np.sqrt(2 * cells)


@pytest.mark.parametrize("schedule", ["loglinear", "cosine", "linear", "geometric"])
def test_unmasking_chances_multiply_to_the_schedule(schedule):
    engines = TableEngines(joint_model(correlated_joint(), MASK, V), [(4, 8)], V)
    manifest = make_manifest(engines, noise_schedule={"name": schedule})
    chances = unmask_chances(manifest, 10)
    assert ((chances > 0) & (chances <= 1)).all()
    if schedule == "loglinear":  # each of the steps left is equally likely
        assert np.allclose(chances, 1 / np.arange(10, 0, -1))
