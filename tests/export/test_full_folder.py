"""A folder that fills up."""

import errno
import tempfile

import pytest
from dlm_edge.export import pack
from dlm_edge.export.pack import ExportSettings, export_checkpoint, full_folder_named
from dlm_edge.runtime.errors import DlmError


def test_a_full_folder_for_temporary_files_is_named(checkpoint, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack, "make_draft", full)
    with pytest.raises(DlmError, match="TMPDIR") as caught:
        export_checkpoint(checkpoint, tmp_path / "m.dlm", ExportSettings())
    assert tempfile.gettempdir() in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "named"), OSError(errno.EACCES, "no")],
    ids=["named", "other"],
)
def test_other_faults_go_through(error):
    with pytest.raises(OSError, match=str(error.errno)) as caught, full_folder_named():
        raise error
    assert caught.value is error
