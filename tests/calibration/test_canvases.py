"""Canvas sets: strata, weights, and a file that gives back what went in."""

import numpy as np
import pytest
from dlm_edge.calibration.canvases import Canvas, CanvasSet
from dlm_edge.runtime.errors import CalibrationError
from toy_bundle import CACHE, toy_manifest


def canvas(ratio=0.5, rows=2, seed=0, **changes):
    rng = np.random.default_rng(seed)
    kv = np.zeros((256, *CACHE), np.float32)
    kv[:rows] = rng.standard_normal((rows, *CACHE))
    fields = {
        "graph": "denoise",
        "block": 4,
        "context": 8,
        "inputs": {
            "ids": rng.integers(2, 20, (1, 4)).astype(np.int32),
            "start": np.array([rows], np.int32),
            "kv": kv,
        },
        "mask_ratio": ratio,
        "progress": 0.25,
        "frontier": np.array([False, True, False, True]),
        "weight": 1.25,
        "source": "decode",
    }
    return Canvas(**{**fields, **changes})


@pytest.mark.parametrize(
    ("ratio", "decile"), [(0.0, 0), (0.01, 1), (0.1, 1), (0.3, 3), (0.75, 8), (0.9, 9), (1.0, 10)]
)
def test_decile_is_the_ratio_in_tenths_rounded_up(ratio, decile):
    assert canvas(ratio).decile == decile


def test_positions_about_to_be_committed_weigh_double():
    assert canvas().row_weights.tolist() == [1.25, 2.5, 1.25, 2.5]


def test_a_file_gives_back_what_went_in(tmp_path):
    items = (canvas(), canvas(0.0, rows=0, seed=1), canvas(1.0, rows=8, seed=2, source="random"))
    made = CanvasSet(items=items, model_sha256="ab" * 32, recipe={"seed": 3})
    path = tmp_path / "canvases.npz"
    made.save(path)
    read = CanvasSet.load(path)
    assert (read.model_sha256, read.recipe) == (made.model_sha256, made.recipe)
    assert len(read) == 3
    for old, new in zip(made.items, read.items, strict=True):
        assert old.stratum == new.stratum
        assert (old.weight, old.source, old.progress) == (new.weight, new.source, new.progress)
        assert np.array_equal(old.frontier, new.frontier)
        assert old.inputs.keys() == new.inputs.keys()
        for name, array in old.inputs.items():
            assert array.dtype == new.inputs[name].dtype
            assert np.array_equal(array, new.inputs[name]), name


def test_canvases_that_share_a_cache_share_it_on_disk_and_in_memory(tmp_path):
    first = canvas(rows=256)
    shared = [canvas(0.25, inputs=first.inputs), canvas(0.75, inputs=first.inputs)]
    CanvasSet(items=(first,), model_sha256="", recipe={}).save(tmp_path / "one.npz")
    CanvasSet(items=(first, *shared), model_sha256="", recipe={}).save(tmp_path / "three.npz")
    grown = (tmp_path / "three.npz").stat().st_size - (tmp_path / "one.npz").stat().st_size
    assert grown < 2 * first.inputs["kv"].nbytes
    read = CanvasSet.load(tmp_path / "three.npz")
    assert read.items[0].inputs["kv"] is read.items[2].inputs["kv"]


def test_unused_cache_rows_are_not_written(tmp_path):
    sizes = []
    for rows in (0, 256):
        path = tmp_path / f"{rows}.npz"
        CanvasSet(items=(canvas(rows=rows),), model_sha256="", recipe={}).save(path)
        sizes.append(path.stat().st_size)
    assert abs(sizes[1] - sizes[0] - 256 * np.prod(CACHE) * 4) < 64


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "canvases.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"canvases\.npz cannot be read") as caught:
        CanvasSet.load(path)
    assert "\n" not in str(caught.value)


def test_missing_lists_only_deciles_that_a_block_can_have():
    specs = toy_manifest().graphs
    empty = CanvasSet(items=(), model_sha256="", recipe={})
    wanted = empty.missing(specs, blocks=(4,), masked=True)
    assert [item[3] for item in wanted if item[2] == 8] == [3, 5, 8, 10]
    made = CanvasSet(items=(canvas(0.5),), model_sha256="", recipe={})
    assert ("denoise", 4, 8, 5) not in made.missing(specs, blocks=(4,), masked=True)
    assert [item[3] for item in empty.missing(specs, blocks=(4,), masked=False)] == [0, 0]
    assert empty.missing(specs, blocks=(2,), masked=True) == []
