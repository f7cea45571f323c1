"""Says where there was no room: a write that fails for it does not name its file."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime.errors import DlmError


@contextmanager
def room_beside() -> Iterator[None]:
    """Names the folder for temporary files where it fills up; other faults go through."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            raise DlmError(
                f"no space is left in {tempfile.gettempdir()}, where graphs and weights wait to be "
                "packed: free some, or name another folder as TMPDIR"
            ) from error
        raise
