"""The user's cache directory: where bundles are unpacked, and what was learnt about them is kept.

Private to the user (mode 0700), because what lies here is opened without being hashed again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BundleError
from .files import write_whole

REMEDY = "set XDG_CACHE_HOME to a writable folder"


def cache_root() -> Path:
    """Returns $XDG_CACHE_HOME/dlm-edge or ~/.cache/dlm-edge, made on first use.

    Raises:
        BundleError: It cannot be made, belongs to someone else or is writable by others.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
        root = base / "dlm-edge"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.stat()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(
            f"bundles need a cache directory to be unpacked into ({reason}): {REMEDY}"
        ) from error
    if os.geteuid() not in (status.st_uid, 0) or status.st_mode & 0o022:
        raise BundleError(
            f"the cache directory {root} must belong to you and be writable by nobody else: "
            f"run chmod 700 on it, or {REMEDY}"
        )
    return root


@contextmanager
def locked(path: Path, busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds an advisory lock on `path` (made if absent) against other processes.

    Args:
        busy: Called before waiting, if another process holds the lock.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_beside(path: Path, data: bytes) -> None:
    """Writes a small file of the cache whole or not at all.

    A power failure may cost it, since it can be made again: nothing waits for the disk.
    """
    write_whole(path, data, durable=False, private=True)
