from __future__ import annotations

import os
from pathlib import Path

import pytest
from dlm_edge.runtime.files import name_beside
from dlm_edge.train.files import new_folder, remove_unfinished, write_file, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fill(beside: Path) -> None:
        beside.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_file(path, fill)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    def interrupted() -> None:
        with new_folder(tmp_path / "a") as beside:
            (beside / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "a") as beside:
        (beside / "all").write_text("x")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["all"]


def test_the_folder_of_a_faster_process_is_kept(tmp_path: Path):
    with new_folder(tmp_path / "a") as beside:
        (beside / "slow").write_text("x")
        with new_folder(tmp_path / "a") as faster:
            (faster / "fast").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["fast"]


def test_old_remains_of_killed_processes_are_removed(tmp_path: Path):
    old, new = name_beside(tmp_path / "old"), name_beside(tmp_path / "new")
    for folder in (old, new):
        folder.mkdir()
    (tmp_path / "kept").write_text("x")
    os.utime(old, (0, 0))
    remove_unfinished(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {new.name, "kept"}
