"""Canvases on disk: the same when they come back, refused where they belong to something else."""

import json
import zipfile

import numpy as np
import pytest
from dlm_edge.calibration.canvases.canvases import CanvasSet, Inputs, RecordedRun
from dlm_edge.calibration.canvases.file import read_canvases, write_canvases
from dlm_edge.runtime.errors import CalibrationError
from toy_bundle import CACHE, toy_manifest

SPECS = toy_manifest().graphs
OWNER = {"checkpoint": "ab", "seed": 0}


def canvas(seed=0, shared=None, rows=2, **changes):
    rng = np.random.default_rng(seed)
    spec = SPECS[0]
    kv = np.zeros((spec.context, *CACHE), np.float32)
    kv[:2] = rng.standard_normal((2, *CACHE))
    fields = {
        "spec": spec,
        "inputs": Inputs(
            {
                "ids": rng.integers(2, 20, (1, spec.rows)).astype(np.int32),
                "start": np.array([2], np.int32),
                "kv": kv[:rows] if shared is None else shared[:rows],
            },
            {"kv": spec.context},
        ),
        "mask_ratio": 0.5, "progress": 0.25, "weight": 1.25, "source": "decode",
        "committing": np.array([False, True, False, True]),
    }  # fmt: skip
    return RecordedRun(**{**fields, **changes})


def one_set(*items):
    return CanvasSet(items=items, model_sha256="cd", recipe={"seed": 0})


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "c.canvases"
    first = canvas()
    again = canvas(1, shared=first.inputs.arrays["kv"], rows=1, source="random")
    write_canvases(path, {"decode": one_set(first, again), "clean": one_set(canvas(2))}, OWNER)
    return path


def test_what_comes_back_is_what_was_written(written):
    found = read_canvases(written, OWNER, SPECS)
    assert list(found) == ["decode", "clean"]
    assert (found["decode"].model_sha256, found["decode"].recipe) == ("cd", {"seed": 0})
    for item, wanted in zip(found["decode"].items, (canvas(), None), strict=True):
        if wanted is None:
            assert item.source == "random"
            continue
        for name, array in wanted.inputs.items():
            assert item.inputs[name].dtype == array.dtype
            np.testing.assert_array_equal(item.inputs[name], array)
        np.testing.assert_array_equal(item.committing, wanted.committing)
        for name in ("stratum", "progress", "weight", "source"):
            assert getattr(item, name) == getattr(wanted, name)


def test_arrays_that_canvases_share_stand_once(written):
    with zipfile.ZipFile(written) as archive:
        names = archive.namelist()
    # Three of ids, two of kv, one of start, since all of them begin at 2.
    assert len(names) == 3 + 2 + 1 + 1
    found = read_canvases(written, OWNER, SPECS)["decode"].items
    one, other = (item.inputs.arrays["kv"] for item in found)
    assert (len(one), len(other)) == (2, 1)
    assert np.shares_memory(one, other)


def test_progress_is_told_after_every_canvas(tmp_path):
    told = []
    write_canvases(
        tmp_path / "c", {"decode": one_set(canvas(), canvas(1))}, OWNER, lambda *at: told.append(at)
    )
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", ["checkpoint", "seed"])
def test_canvases_of_something_else_are_refused_by_what_differs(written, name):
    with pytest.raises(CalibrationError, match=f"recorded with another {name}") as caught:
        read_canvases(written, {**OWNER, name: "other"}, SPECS)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_or_no_archive_is_refused(written):
    whole = written.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"canvases", b""):
        written.write_bytes(damaged)
        with pytest.raises(CalibrationError, match="is no file of canvases or is damaged"):
            read_canvases(written, OWNER, SPECS)


def rewritten(path, change):
    """Writes a copy with a changed index."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(members["index.json"])
    change(index)
    members["index.json"] = json.dumps(index).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["arrays"][0].__setitem__(0, "object"),
        lambda index: index["arrays"][0].__setitem__(1, [1, 10**12]),
        lambda index: index["sets"]["decode"]["items"][0].update(dims={"rows": 7}),
        lambda index: index["sets"]["decode"]["items"][0]["inputs"].update(kv=[0, 4]),
        lambda index: index["sets"]["decode"]["items"][0]["inputs"].update(kv=[99, 2]),
        lambda index: index["sets"]["decode"]["items"][0]["inputs"].pop("kv"),
        lambda index: index["sets"]["decode"]["items"][0].update(committing=[99]),
        lambda index: index["sets"]["decode"]["items"][0].update(source="elsewhere"),
        lambda index: index.pop("arrays"),
    ],
)
def test_nothing_in_a_file_is_trusted(written, change):
    rewritten(written, change)
    with pytest.raises(CalibrationError, match="is no file of canvases or is damaged"):
        read_canvases(written, OWNER, SPECS)


def test_a_file_of_another_version_is_recorded_anew(written):
    rewritten(written, lambda index: index.update(version=99))
    with pytest.raises(CalibrationError, match="another version"):
        read_canvases(written, OWNER, SPECS)


def test_files_beyond_the_bounds_are_not_unpacked(written, monkeypatch):
    from dlm_edge.calibration.canvases import file as canvas_file

    monkeypatch.setattr(canvas_file, "MAX_BYTES", 100)
    with pytest.raises(CalibrationError, match="GiB unpacked"):
        read_canvases(written, OWNER, SPECS)


def test_a_folder_that_is_missing_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="choose another --canvases"):
        write_canvases(tmp_path / "file" / "c", {"decode": one_set(canvas())}, OWNER)


def test_nothing_is_left_when_writing_fails(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_canvases(tmp_path / "c", {"decode": one_set(canvas())}, OWNER, stop)
    assert list(tmp_path.iterdir()) == []
