"""The zip inside a bundle: written deterministically, read without trust.

Knows names, sizes and hashes, and nothing of what the members mean. Every fault of a foreign,
damaged or hostile archive ends as `BundleError`, and no more is read than was declared.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import BundleError, brief
from ..files import written_beside
from .manifest import Member

CHUNK = 1 << 20
MIN_SAVING = 0.15
"""Share of a member's size that DEFLATE must save to be worth its time: packing float16 weights of
270 MB takes 20 s for 11 % of them."""
TRIED_BYTES = 32 << 20
"""Of larger content this much is tried, to see whether compression pays."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    OSError,
)


def damaged(what: str) -> BundleError:
    """The error of a bundle whose bytes are not what dlm-export wrote."""
    return BundleError(
        f"{what}; the bundle is damaged, incomplete or foreign: copy or export it again"
    )


@contextmanager
def reading() -> Iterator[None]:
    """Turns whatever the zip and zlib modules raise on bad bytes into BundleError."""
    try:
        yield
    except _DAMAGE as error:
        reason = brief(error, 80) or type(error).__name__
        raise damaged(f"the bundle cannot be read as a zip ({reason!r})") from error


def hash_file(handle: BinaryIO) -> str:
    """Returns the SHA-256 of an open file, from its start."""
    handle.seek(0)
    return _described(iter(lambda: handle.read(CHUNK), b"")).sha256


def _described(chunks: Iterable[bytes]) -> Member:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return Member(sha256=digest.hexdigest(), size=size)


def _check_entry(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if not info.filename:  # `is_dir` of Python 3.11 and older takes it for an index
        raise damaged("a member has no name")
    if info.is_dir() or kind not in (0, stat.S_IFREG) or info.orig_filename != info.filename:
        raise damaged(f"member {info.orig_filename[:60]!r} is not a plain file")
    if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise damaged(f"member {info.filename[:60]!r} is encrypted or packed in an unknown way")
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise damaged(f"member {info.filename[:60]!r} has two sizes")


def open_archive(handle: BinaryIO, max_members: int) -> zipfile.ZipFile:
    """Opens a bundle's zip and checks every entry's kind, packing and name; raises BundleError."""
    with reading():
        archive = zipfile.ZipFile(handle)
    entries = archive.infolist()
    names = {info.filename for info in entries}
    if len(names) != len(entries):
        raise damaged("a member name occurs twice")
    if not 1 <= len(entries) <= max_members:
        raise damaged(f"wanted 1 to {max_members} members, found {len(entries)}")
    for info in entries:
        _check_entry(info)
    return archive


def read_small(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Returns one member of at most `limit` bytes; raises BundleError."""
    if name not in archive.namelist():
        raise damaged(f"the bundle has no {name}")
    if archive.getinfo(name).file_size > limit:
        raise damaged(f"{name} is larger than {limit} bytes")
    with reading(), archive.open(name) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise damaged(f"{name} is larger than {limit} bytes")
    return data


def check_directory(
    archive: zipfile.ZipFile, members: Mapping[str, Member], others: tuple[str, ...]
) -> None:
    """Compares the archive's entries and their sizes with the manifest's; raises BundleError."""
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    found = set(sizes) - set(others)
    if found != set(members):
        odd = sorted(found ^ set(members))[0]
        raise damaged(f"member {odd[:60]!r} is in the manifest or in the file, not in both")
    for name, member in members.items():
        if sizes[name] != member.size:
            raise damaged(f"{name} must have {member.size} bytes, the file states {sizes[name]}")


def extract(
    archive: zipfile.ZipFile, name: str, member: Member, write: Callable[[bytes], object]
) -> None:
    """Streams one member to `write`, never beyond its stated size, and checks its hash.

    Raises:
        BundleError: Size or hash differ from the manifest's. Errors of `write` pass through.
    """
    digest, size = hashlib.sha256(), 0
    with reading():
        stream = archive.open(name)
    with stream:
        while True:
            with reading():
                chunk = stream.read(CHUNK)
            if not chunk:
                break
            size += len(chunk)
            if size > member.size:
                break
            digest.update(chunk)
            write(chunk)
    if size != member.size or digest.hexdigest() != member.sha256:
        raise damaged(f"{name} does not have the size and SHA-256 that the manifest states")


def _source(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield from (content[at : at + CHUNK] for at in range(0, len(content), CHUNK))
    else:
        with content.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                yield chunk


def describe(content: bytes | Path) -> Member:
    """Returns the size and SHA-256 of bytes or of a file."""
    return _described(_source(content))


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _saving(content: bytes | Path, size: int) -> float:
    """Share of the bytes that compression saves: tried on evenly spaced chunks of large content,
    since weights are alike all through and a gigabyte takes half a minute."""
    every = max(1, size // TRIED_BYTES)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    before = after = 0
    for number, chunk in enumerate(_source(content)):
        if number % every == 0:
            before += len(chunk)
            after += len(packer.compress(chunk))
    return 1 - (after + len(packer.flush())) / max(before, 1)


def write_archive(
    path: Path,
    members: Mapping[str, bytes | Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a zip beside `path` and renames it there; the same members give the same bytes.

    `progress` gets how many of the members' bytes are written.

    Raises:
        OSError: The file cannot be written; nothing is left behind, `path` is untouched.
    """
    with written_beside(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        sizes = {name: _size(content) for name, content in members.items()}
        done = 0
        for name, content in members.items():
            size = sizes[name]
            info = zipfile.ZipInfo(name, date_time=_EPOCH)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3
            info.file_size = size  # so that zip64 is chosen for large members only
            if _saving(content, size) > MIN_SAVING:
                info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as stream:
                for chunk in _source(content):
                    stream.write(chunk)
                    done += len(chunk)
                    progress(done, sum(sizes.values()))
