import numpy as np
import pytest
from dlm_edge.calibration.canvases.canvases import Inputs, RecordedRun
from dlm_edge.calibration.losses.agreement import (
    Counts,
    Reference,
    Trajectory,
    decode_trajectory,
    trajectory_agreement,
)
from dlm_edge.runtime.errors import CalibrationError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import decoding_settings, load_model
from dlm_edge.runtime.generate import generate
from hypothesis import given
from hypothesis import strategies as st
from table_engines import TableEngines, hashed, make_manifest


@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 999))
def test_counts_are_those_of_sorting(rows, vocab, seed):
    rng = np.random.default_rng(seed)
    found, wanted = rng.standard_normal((2, rows, vocab))
    counts = Counts()
    counts.add(found, wanted)
    best = [int(np.argmax(a) == np.argmax(b)) for a, b in zip(found, wanted, strict=True)]
    most = min(5, vocab)
    shared = [
        len(set(np.argsort(-a)[:most]) & set(np.argsort(-b)[:most])) / most
        for a, b in zip(found, wanted, strict=True)
    ]
    figures = counts.to_json()
    assert figures["rows"] == rows
    np.testing.assert_allclose(figures["top1"], np.mean(best))
    np.testing.assert_allclose(figures["top5"], np.mean(shared))


def opened(engines):
    return load_model(make_manifest(engines), engines)


def decode(*states, given=1):
    arrays = tuple(np.array(state) for state in states)
    return Trajectory(
        states=arrays, tokens=arrays[-1][arrays[-1] >= 0], num_given=given, nfe=len(arrays)
    )


def test_equal_decodes_agree_at_every_step():
    one = decode([0, 9, 9], [0, 5, 9], [0, 5, 6])
    figures = trajectory_agreement([one], [one])
    assert figures["by_step"] == [1.0, 1.0, 1.0]
    assert figures["same_tokens"] == figures["same_texts"] == 1.0


def test_disagreement_is_counted_from_the_step_it_begins():
    wanted = decode([0, 9, 9], [0, 5, 9], [0, 5, 6])
    found = decode([0, 9, 9], [0, 4, 9], [0, 4, 6])
    figures = trajectory_agreement([found], [wanted])
    assert figures["by_step"] == [1.0, 0.5, 0.5]
    assert figures["same_tokens"] == 0.5
    assert figures["same_texts"] == 0.0
    assert figures["num_decodes"] == [1, 1, 1]


def test_positions_that_only_one_decode_has_written_to_differ():
    wanted = decode([0, 9, -1], [0, 5, 6])
    found = decode([0, 9, -1], [0, 5, -1])
    figures = trajectory_agreement([found], [wanted])
    assert figures["by_step"] == [1.0, 0.5]
    assert figures["same_tokens"] == 0.5


VOCAB = 12


def table(denoiser=None):
    return TableEngines(denoiser or hashed(VOCAB), [(4, 8), (4, 16)], VOCAB)


def canvas(ids, committing, source="decode"):
    inputs = {
        "ids": np.array([ids], np.int32),
        "start": np.zeros(1, np.int32),
        "kv": np.zeros((8, 1, 1, 2, 1, 1), np.float32),
    }
    masked = np.array(ids) == VOCAB - 1
    return RecordedRun(
        spec=next(spec for spec in table().specs if spec.context == 8),
        inputs=Inputs(inputs),
        mask_ratio=float(masked.mean()),
        progress=0.5,
        committing=np.array(committing, bool),
        weight=1.0,
        source=source,
    )


def test_the_mask_is_never_the_token_that_two_models_agree_on():
    mask = VOCAB - 1
    plain = hashed(VOCAB)

    def scored(sign):
        def scores(prefix, block):
            found = sign * plain(prefix, block)
            found[:, mask] = 100.0  # as a score network's own token, where there is much noise
            return found

        return scores

    wanted, found = table(scored(1)), table(scored(-1))
    canvases = [canvas([mask] * 4, [1, 1, 1, 1])]
    counts = Reference(opened(wanted), canvases).agreement(opened(found)).to_json()
    assert counts["about_to_be_committed"]["rows"] == 4
    assert counts["about_to_be_committed"]["top1"] == 0.0
    assert (
        Reference(opened(wanted), canvases).agreement(opened(wanted)).to_json()["all"]["top1"]
        == 1.0
    )


def test_only_masked_rows_are_compared_and_the_committing_apart():
    mask = VOCAB - 1
    canvases = [
        canvas([1, mask, mask, 2], [0, 1, 0, 0]),
        canvas([mask, mask, mask, mask], [1, 1, 1, 1], source="random"),
    ]
    plain = hashed(VOCAB)

    def changed(prefix, block):
        scores = plain(prefix, block).copy()
        scores[2] = -scores[2]  # only row 2 wants something else
        return scores

    reference = Reference(opened(table()), canvases)
    figures = reference.agreement(opened(table(changed))).to_json()
    assert figures["all"]["rows"] == 2 + 4
    assert figures["all"]["top1"] == 4 / 6
    assert figures["about_to_be_committed"] == {"rows": 1, "top1": 1.0, "top5": 1.0}
    assert set(figures["by_mask_ratio"]) == {"0.5", "1.0"}
    assert figures["by_mask_ratio"]["0.5"]["top1"] == 0.5


def test_scores_that_are_not_finite_are_an_error():
    reference = Reference(opened(table()), [canvas([11] * 4, [1] * 4)])

    def broken(prefix, block):
        return np.full((len(block), VOCAB), np.nan, np.float32)

    with pytest.raises(CalibrationError, match="denoise gives NaN"):
        reference.agreement(opened(table(broken)))


@pytest.mark.parametrize("family", ["mdlm", "ar"])
def test_a_trajectory_ends_in_the_text_that_decoding_gives(family):
    engines = TableEngines(hashed(VOCAB, causal=family == "ar"), [(1, 16), (4, 16)], VOCAB)
    manifest = make_manifest(engines, family=family)
    request = Request(
        prompt_ids=(0, 3),
        max_tokens=9,
        seed=4,
        sample_index=0,
        settings=decoding_settings(manifest, {}),
        provisional=True,
    )
    found = decode_trajectory(load_model(manifest, engines), request)
    wanted = generate(load_model(manifest, engines), request)
    assert tuple(found.tokens.tolist()) == wanted.token_ids
    last = found.states[-1]
    np.testing.assert_array_equal(last[2 : len(found.tokens)], found.tokens[2:])
    assert len(found.states) <= wanted.nfe
