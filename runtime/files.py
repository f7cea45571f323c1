"""Files that appear whole or not at all: written beside, synced, renamed. And JSON from anywhere.

The only place that does so. Who reads sees the old bytes or the new ones, and whatever interrupts
the writer (an error, Ctrl-C, a board that loses power) leaves the old ones.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DlmError

UNFINISHED = ".partial"
"""Ends the name of everything that is not finished; such names begin with a dot."""


def parse_json(text: str | bytes) -> Any:
    """Reads JSON; ValueError for whatever is none, an object nested too deep included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def name_beside(path: Path) -> Path:
    """Returns a new name in the folder of `path`, for what becomes `path` when it is finished."""
    return path.parent / f".{path.name}.{os.urandom(4).hex()}{UNFINISHED}"


def is_unfinished(path: Path) -> bool:
    """Tells whether a name is one of `name_beside`'s, left by a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)


@contextmanager
def written_beside(path: Path, *, durable: bool = True, private: bool = False) -> Iterator[Path]:
    """Gives a name beside `path`; the file written there becomes `path` if the block ends well.

    Args:
        durable: Wait until the bytes are on the disk, so that the rename cannot outlive them.
        private: Nobody but the owner may read it (mode 0600).

    Raises:
        OSError: As writing, syncing and renaming do; nothing is left behind then.
    """
    beside = name_beside(path)
    try:
        if private:
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield beside
        if durable:
            sync_file(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_whole(
    path: Path, data: bytes | str, *, durable: bool = True, private: bool = False
) -> None:
    """Writes a file whole or not at all; a text as UTF-8. See `written_beside`."""
    with written_beside(path, durable=durable, private=private) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def writing(
    what: object, remedy: str = "choose another place", error: type[DlmError] = DlmError
) -> Iterator[None]:
    """Turns a fault of the disk or its rights into an error that says what could not be written."""
    try:
        yield
    except OSError as fault:
        raise error(f"cannot write {what}: {fault.strerror}; {remedy}") from fault


def sync_file(path: Path) -> None:
    """Makes a finished file durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> float:
    """Returns the room left under a folder; infinite where its file system states none."""
    usage = shutil.disk_usage(folder)
    # All zero: ramfs, tmpfs without a size, some network file systems.
    return usage.free if usage.total else math.inf
