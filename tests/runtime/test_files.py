import math
import os
from types import SimpleNamespace

import pytest
from dlm_edge.runtime import files
from dlm_edge.runtime.files import (
    free_bytes,
    is_unfinished,
    name_beside,
    write_whole,
    written_beside,
)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_whatever_interrupts_leaves_the_old_file_and_nothing_beside(tmp_path, error):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def write():
        with written_beside(path) as beside:
            beside.write_text("ha")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text("utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_appears_by_one_rename_with_the_rights_of_the_users_mask(tmp_path):
    path = tmp_path / "a.bin"
    with written_beside(path) as beside:
        beside.write_bytes(b"whole")
        assert not path.exists()
        assert is_unfinished(beside)
    assert path.read_bytes() == b"whole"
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_two_writers_never_share_a_name(tmp_path):
    assert name_beside(tmp_path / "a") != name_beside(tmp_path / "a")
    assert not is_unfinished(tmp_path / "a.partial")


@pytest.mark.parametrize(("total", "free"), [(100, 7), (0, math.inf)])
def test_a_file_system_without_a_limit_is_not_a_full_one(tmp_path, monkeypatch, total, free):
    usage = SimpleNamespace(total=total, used=0, free=7 if total else 0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    assert free_bytes(tmp_path) == free
