"""Checkpoints and shards on disk: files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..runtime.files import (
    is_unfinished,
    name_beside,
    sync_file,
    sync_folder,
    write_whole,
    writing,
    written_beside,
)


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a temporary name beside `path`, then renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:
        write(beside)
        beside.chmod(0o644)  # safetensors writes files that only their owner may read


def make_folder(folder: Path) -> None:
    """Makes the folder of what is to be written; DlmError if it cannot be."""
    with writing(f"into {folder}", "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` that becomes `path` when the block ends well.

    If `path` exists by then (another process was faster), it is kept and ours is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
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
        if not is_unfinished(item):
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - item.stat().st_mtime >= older_than_s:
                if item.is_dir():
                    shutil.rmtree(item, ignore_errors=True)
                else:
                    item.unlink()
