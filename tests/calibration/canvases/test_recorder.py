"""Canvases of any dtype and dimensions, and the noise that an input of any role says."""

from dataclasses import replace

import numpy as np
import pytest
from dlm_edge.calibration.canvases.recorder import Recorder
from dlm_edge.runtime.bundle.manifest import TensorSpec
from dlm_edge.runtime.families.sedd.family import ScoreFamily
from manifests import bare_spec

MASK, ROWS, LAYERS = 9, 4, 3


def recorded(canvas, *, clean=None, source="random", level=lambda inputs: None, **noise):
    """One run over a canvas, as it is kept."""
    given = {"canvas": canvas, **noise}
    inputs = tuple(
        TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape, role=name)
        for name, array in given.items()
    )
    recorder = Recorder(MASK, per_stratum=9, seed=0, noise_level=level)
    recorder.source, recorder.clean = source, clean
    recorder.see(replace(bare_spec("g", ROWS, 0), inputs=inputs), given)
    (kept,) = recorder.canvases()
    return kept


def test_a_position_with_several_ids_is_masked_if_one_of_them_is():
    canvas = np.zeros((1, ROWS, LAYERS), np.int32)
    canvas[0, 1, 2] = canvas[0, 3, 0] = MASK
    kept = recorded(canvas)
    assert kept.mask_ratio == 0.5
    assert kept.committing.tolist() == [False, True, False, True]


def test_clean_ids_are_written_at_every_position_whatever_its_dimensions():
    canvas = np.full((1, ROWS, LAYERS), MASK, np.int32)
    text = np.array([5, 6, 7], np.int32)
    kept = recorded(canvas, clean=text, source="clean")
    assert kept.inputs["canvas"][0].tolist() == [[each] * LAYERS for each in (5, 6, 7, 5)]
    assert kept.mask_ratio == 0.0


def test_a_canvas_of_floats_is_kept_as_it_is():
    canvas = np.random.default_rng(0).random((1, ROWS, 8), np.float32)
    kept = recorded(canvas, clean=np.arange(ROWS, dtype=np.int32), source="clean")
    np.testing.assert_array_equal(kept.inputs["canvas"], canvas)
    assert not kept.committing.any()


def test_noise_that_no_mask_shows_is_what_the_family_reads_from_the_inputs():
    canvas = np.random.default_rng(0).random((1, ROWS, 8), np.float32)
    given = {"sigma": np.array([np.log(4)], np.float32)}
    kept = recorded(canvas, level=ScoreFamily().noise_level, **given)
    assert kept.mask_ratio == pytest.approx(0.75)
    assert kept.committing.all()
