"""What the recorder keeps of score networks, which noise reaches by levels."""

import numpy as np
import pytest
from dlm_edge.calibration.canvases.record import CanvasSettings, clean_canvases, record_canvases
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.text.tokenizer import Tokenizer
from score_bundle import EOS, write_score

MASK = 1
SMALL = CanvasSettings(per_stratum=2, num_decodes=4, num_windows=3, num_samples=4)


def window_of(bundle):
    tokenizer = Tokenizer.load(bundle.member("tokenizer.json"))
    return np.resize(np.array([EOS, *tokenizer.encode("The cat sat.")], np.int32), 32)


def test_clean_canvases_hold_the_text_where_noise_replaces_tokens_by_others(tmp_path):
    bundle = open_bundle(write_score(tmp_path / "s.dlm", "uniform"))
    window = window_of(bundle)
    clean = clean_canvases(bundle, [window], SMALL, seed=0)
    assert len(clean)
    for item in clean.items:
        ids = item.inputs["ids"][0]
        text = window[: len(ids)]
        assert np.array_equal(ids[: len(text)], text)


@pytest.fixture(scope="module")
def noised(tmp_path_factory):
    """A bundle whose noise replaces tokens by others, and what decoding it records."""
    bundle = open_bundle(write_score(tmp_path_factory.mktemp("score") / "s.dlm", "uniform"))
    window = window_of(bundle)
    return bundle, record_canvases(bundle, [window], SMALL, seed=0)


def test_noise_that_replaces_tokens_is_told_apart_by_its_level(noised):
    bundle, made = noised
    for item in made.items:
        sigma = float(item.inputs["sigma"][0])
        assert item.mask_ratio == pytest.approx(1 - np.exp(-sigma), abs=1e-6)
    assert made.missing(bundle.manifest.graphs, blocks=(16, 32), masked=True) == []
    assert made.recipe["uncovered"] == []
    assert not made.holds(bundle.manifest.mask_token_id)
    levels = {source: [i.mask_ratio for i in made.items if i.source == source]
              for source in ("decode", "random")}  # fmt: skip
    assert all(min(found) < 0.2 and max(found) > 0.9 for found in levels.values())


def test_all_positions_count_alike_where_noise_is_drawn_and_those_that_move_where_it_is_decoded(
    noised,
):
    _, made = noised
    for item in made.items:
        assert item.committing.all() or item.source == "decode"
    assert {bool(item.committing.any()) for item in made.items if item.source == "decode"} != {
        False
    }


def test_absorbing_noise_is_told_apart_by_its_masks(tmp_path):
    bundle = open_bundle(write_score(tmp_path / "s.dlm", "absorb"))
    window = window_of(bundle)
    made = record_canvases(bundle, [window], SMALL, seed=0)
    for item in made.items:
        assert item.mask_ratio == float(np.mean(item.inputs["ids"] == MASK))
