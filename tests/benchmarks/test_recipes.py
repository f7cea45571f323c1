"""The arithmetic of the recipes benchmark; its figures are not asserted."""

import numpy as np
import pytest
from dlm_edge.benchmarks.recipes import WINDOW, counted, inputs_of, paired, read_text, read_windows
from dlm_edge.calibration.recipe import GraphRecipe, LayerRecipe, Recipe
from manifests import denoise_spec


def test_windows_are_whole_follow_each_other_and_are_no_more_than_asked_for(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a" * (3 * WINDOW + 5), "utf-8")
    found = read_windows(path, lambda text: list(range(len(text))), 8)
    assert [len(ids) for ids in found] == [WINDOW] * 3
    assert np.concatenate(found).tolist() == list(range(3 * WINDOW))
    assert len(read_windows(path, lambda text: list(range(len(text))), 2)) == 2


def test_a_window_is_read_without_the_last_token_and_in_nats():
    class Session:
        def run(self, names, inputs):
            assert names == ["logits"]
            ids = inputs["ids"]
            logits = np.zeros((1, ids.shape[1], 4), np.float32)
            logits[0, 0, 1] = np.log(3)
            return [logits]

    spec = denoise_spec(3, 8, vocab=4, cache=(1,))
    losses, top = read_text(Session(), spec, [np.array([2, 1, 3], np.int32)])
    # The first token's row gives the second one 3 of 6, the second row the third one 1 of 4.
    assert losses.tolist() == pytest.approx([(np.log(2) + np.log(4)) / 2])
    assert top.tolist() == [1, 0]
    assert inputs_of(spec, np.array([2, 1, 3], np.int32))["ids"].tolist() == [[2, 1, 3]]


def test_the_ratio_is_that_of_the_same_windows():
    exact = np.array([1.0, 2.0, 3.0])
    found = paired(exact + np.log(1.5), exact)
    assert found["ratio"] == pytest.approx(1.5)
    assert found["interval"] == pytest.approx((1.5, 1.5))
    low, high = paired(exact + 0.1 * np.arange(1, 4), exact)["interval"]
    assert low < np.exp(0.2) < high


def test_layers_are_counted_by_their_outliers():
    layers = {
        "a": LayerRecipe(precision="int8", outliers=(1, 2)),
        "b": LayerRecipe(precision="int8"),
        "c": LayerRecipe(precision="int8", outliers=(3, 4)),
        "d": LayerRecipe(precision="float"),
    }
    recipe = Recipe(target="cpu", graphs={"g": GraphRecipe(layers=layers)})
    assert counted(recipe) == {"0": 1, "2": 2}
