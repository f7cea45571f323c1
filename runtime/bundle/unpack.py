"""A bundle's entry in the user's cache: unpacked once, verified at every load.

`bundles/<sha256>/` holds the members beside the manifest they were checked against. It appears by
one rename, complete and hashed; a damaged one is unpacked again. Several processes may do all this
at once: they take turns at a lock per entry.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from ..cache import REMEDY, cache_root, locked, write_beside
from ..errors import BundleError
from ..files import free_bytes, parse_json
from .archive import damaged, describe, extract
from .manifest import Manifest
from .manifest_check import MANIFEST_NAME
from .onnx_scan import check_external_data

SMALL_BYTES = 2 << 20
"""Members up to this size are hashed at every load, larger ones when they are unpacked."""
MAX_GRAPH_BYTES = 64 << 20
"""Of an ONNX file itself: its weights are in another file and may be larger."""


def _folder(name: str) -> Path:
    folder = cache_root() / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"cannot write to the cache directory {folder.parent} ({error.strerror}): {REMEDY}"
        ) from error
    return folder


def _hint_file(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return _folder("index") / f"{name}.json"


def _identity(handle: BinaryIO) -> list[int]:
    status = os.fstat(handle.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def known_entry(path: Path, handle: BinaryIO, text: bytes, manifest: Manifest) -> Path | None:
    """Returns the sound entry of a bundle file seen before, without hashing the whole file.

    A file of the same place, inode, size and time of change is taken to have the hash it had; that
    is only a hint. What makes it safe is that the entry holds exactly this file's manifest, and the
    manifest commits to every member.
    """
    try:
        hint: Any = parse_json(_hint_file(path).read_bytes())
        digest, identity = hint["sha256"], hint["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if identity != _identity(handle) or not isinstance(digest, str):
        return None
    if not re.fullmatch("[0-9a-f]{64}", digest):
        return None
    entry = _folder("bundles") / digest
    return entry if _is_sound(entry, text, manifest) else None


def _is_sound(entry: Path, text: bytes, manifest: Manifest) -> bool:
    """True if an entry holds this manifest and members of its sizes (small ones: hashes)."""
    try:
        if (entry / MANIFEST_NAME).read_bytes() != text:
            return False
        for name, member in manifest.members.items():
            status = (entry / name).lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != member.size:
                return False
            if member.size <= SMALL_BYTES and describe(entry / name) != member:
                return False
    except OSError:
        return False
    return True


def make_entry(
    path: Path,
    handle: BinaryIO,
    archive: zipfile.ZipFile,
    digest: str,
    text: bytes,
    manifest: Manifest,
) -> Path:
    """Returns the sound entry of the bundle with this SHA-256, unpacking it where need be.

    Raises:
        BundleError: A member is damaged, a graph reads foreign files, or the cache is unwritable.
    """
    entry = _folder("bundles") / digest
    try:
        if not _is_sound(entry, text, manifest):
            with locked(entry.with_suffix(".lock")):
                if not _is_sound(entry, text, manifest):
                    _unpack(archive, entry, text, manifest)
        hint = {"sha256": digest, "identity": _identity(handle), "path": str(path)}
        write_beside(_hint_file(path), json.dumps(hint).encode())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(entry, manifest) from error
        raise BundleError(
            f"cannot unpack into the cache directory {entry.parent} ({error.strerror}): {REMEDY}"
        ) from error
    return entry


def _no_space(entry: Path, manifest: Manifest) -> BundleError:
    need = sum(member.size for member in manifest.members.values())
    return BundleError(
        f"unpacking the bundle needs {need / 2**20:.0f} MiB under {entry.parent}, which has less: "
        f"free some space or {REMEDY}"
    )


def _unpack(archive: zipfile.ZipFile, entry: Path, text: bytes, manifest: Manifest) -> None:
    """Writes and verifies all members beside `entry`, then renames; the caller holds the lock."""
    sizes = {name: member.size for name, member in manifest.members.items()}
    if free_bytes(entry.parent) < sum(sizes.values()):
        raise _no_space(entry, manifest)
    partial = entry.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        for name, member in manifest.members.items():
            place = partial / name
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with place.open("xb") as out:
                extract(archive, name, member, out.write)
                _settle(out)
        for name in {graph.file for graph in manifest.graphs}:
            if sizes[name] > MAX_GRAPH_BYTES:
                raise damaged(f"{name} has more than {MAX_GRAPH_BYTES >> 20} MiB")
            check_external_data(name, (partial / name).read_bytes(), sizes)
        with (partial / MANIFEST_NAME).open("xb") as out:
            out.write(text)
            _settle(out)
        # A damaged entry makes room; processes that have its files open keep them.
        shutil.rmtree(entry, ignore_errors=True)
        os.rename(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settle(out: BinaryIO) -> None:
    """Boards lose power: the rename must not outlive the bytes."""
    out.flush()
    os.fsync(out.fileno())
