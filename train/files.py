"""Files and folders that appear whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

TEMPORARY = ".writing-"
"""Starts the name of everything that is not finished."""


def sync_folder(path: Path) -> None:
    """Makes renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes a finished file durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a temporary name beside `path`, then renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}"
    try:
        write(beside)
        beside.chmod(0o644)  # safetensors writes files that only their owner may read
        sync_file(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_file(path, lambda beside: _write_utf8(beside, text))


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` that becomes `path` when the block ends well.

    If `path` exists by then (another process was faster), it is kept and ours is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}"
    beside.mkdir()
    try:
        yield beside
        for file in beside.iterdir():
            sync_file(file)
        sync_folder(beside)
        try:
            beside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        sync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_unfinished(folder: Path, older_than_s: float = 86400.0) -> None:
    """Deletes what an interrupted process left in `folder`, if it is old enough to be dead."""
    if not folder.is_dir():
        return
    for item in folder.iterdir():
        if not item.name.startswith(TEMPORARY):
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - item.stat().st_mtime >= older_than_s:
                if item.is_dir():
                    shutil.rmtree(item, ignore_errors=True)
                else:
                    item.unlink()
