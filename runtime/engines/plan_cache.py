"""Plans (serialised TensorRT engines) in the user's cache: built once, checked at every load.

A plan runs code and fits one board, so it never travels in a bundle. `plans/<key>.plan` holds one
line of JSON, padded to a page, and the plan behind it; the key is a hash of everything that a plan
depends on. Files appear by one rename, complete. One that is damaged, truncated or foreign counts
as absent. Processes that want the same plan take turns at a lock: the first builds, the others
load what it built.

What it does not know: TensorRT. Plans are bytes here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cache import REMEDY, cache_root, locked, write_beside
from ..errors import EngineError
from ..files import UNFINISHED, free_bytes, parse_json, written_beside

FORMAT = "dlm-plan 2"
HEADER_BYTES = 4096
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """Everything that decides whether a plan may be used."""

    bundle_sha256: str
    file: str
    """The ONNX member."""
    precision: str
    backend_version: str
    """Of TensorRT, in full."""
    gpu_name: str
    compute_capability: str
    driver_version: int
    power_mode: str
    options: Mapping[str, Any]
    """Build settings: numbers, strings, booleans."""

    @property
    def digest(self) -> str:
        """Name of the plan's file."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    @property
    def machine(self) -> str:
        """Name under which kernel times of this GPU and TensorRT are kept."""
        parts = (
            self.backend_version,
            self.gpu_name,
            self.compute_capability,
            str(self.driver_version),
            self.power_mode,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """One plan of the cache, for listing."""

    path: Path
    bytes: int
    header: Mapping[str, Any] | None
    """What its first line says; None: unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPlan:
    """What a build hands to the cache."""

    data: memoryview
    facts: Mapping[str, Any]
    """For listing: seconds, profiles, …; JSON."""


class PlanCache:
    """The plans of this user."""

    def __init__(self, note: Callable[[str], None] = lambda line: None) -> None:
        """Opens the cache.

        Args:
            note: Gets a line when a plan is damaged, or another process is waited for.

        Raises:
            BundleError: There is no cache directory, or others can write to it.
            EngineError: The folder for plans cannot be made.
        """
        self._note = note
        self.folder = cache_root() / "plans"
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            # A plan runs code: nobody else may use its folder. Left alone where it is
            # so already: what is built can be run from a cache that cannot be written.
            if self.folder.stat().st_mode & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def load(self, key: PlanKey, *, said_before: bool = False) -> memoryview | None:
        """Returns a sound plan, mapped, or None; what is unsound is said and counts as absent.

        `said_before`: it was said already, so stay silent.
        """
        path = self._path(key)
        try:
            return _read(path, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if not said_before:
                self._note(f"the plan {path.name} cannot be used ({error}) and is built again")
            return None

    def obtain(
        self,
        key: PlanKey,
        build: Callable[[], NewPlan],
        *,
        rebuild: bool = False,
        need_bytes: int = 0,
    ) -> memoryview:
        """Returns the plan, building and keeping it if there is none.

        Args:
            build: Builds it; called at most once, by one process at a time.
            need_bytes: What the plan will take at least; found out before minutes of work.

        Raises:
            EngineError: The cache cannot be written, or is full.
        """
        found = None if rebuild else self.load(key)
        if found is not None:
            return found
        with self._turn(key) as waited:
            # The process that had the lock before built this plan.
            found = self.load(key, said_before=not rebuild) if waited or not rebuild else None
            if found is None:
                self._require_space(need_bytes)
                self._store(key, build())
                found = self.load(key)
        if found is None:
            raise EngineError(
                f"the plan just written to {self.folder} cannot be read back: check the disk, or "
                f"{REMEDY}"
            )
        return found

    def entries(self) -> list[PlanEntry]:
        """Lists all plans, newest first."""
        found = []
        for path in self.folder.glob("*.plan"):
            try:
                status = path.stat()
                with path.open("rb") as handle:
                    page = handle.read(HEADER_BYTES)
            except OSError:  # cleared meanwhile
                continue
            try:
                header = _header(page)
            except ValueError:
                header = None
            entry = PlanEntry(path=path, bytes=status.st_size, header=header)
            found.append((status.st_mtime, entry))
        return [entry for _, entry in sorted(found, key=lambda item: item[0], reverse=True)]

    def clear(self, bundle_sha256: str | None = None) -> tuple[int, int]:
        """Removes the plans of one bundle, or all plans and kernel times; returns number, bytes."""
        number = size = 0
        for entry in self.entries():
            if bundle_sha256 is None or (
                entry.header is not None and entry.header["key"]["bundle_sha256"] == bundle_sha256
            ):
                entry.path.unlink(missing_ok=True)
                number, size = number + 1, size + entry.bytes
        if bundle_sha256 is None:
            for path in (*self.folder.glob("*.timing"), *self.folder.glob(f".*{UNFINISHED}")):
                path.unlink(missing_ok=True)
        return number, size

    def timings(self, key: PlanKey) -> bytes:
        """Returns the kernel times kept for this GPU and TensorRT, or nothing."""
        try:
            return (self.folder / f"{key.machine}.timing").read_bytes()
        except OSError:
            return b""

    def keep_timings(self, key: PlanKey, data: bytes) -> None:
        """Keeps kernel times for the next build; a cache that cannot be written keeps none."""
        if data:
            try:
                write_beside(self.folder / f"{key.machine}.timing", data)
            except OSError as error:
                self._note(f"kernel times are not kept ({error.strerror}): builds stay slow")

    def _path(self, key: PlanKey) -> Path:
        return self.folder / f"{key.digest}.plan"

    @contextmanager
    def _turn(self, key: PlanKey) -> Iterator[bool]:
        """Holds the plan's lock; gives whether another process had it."""
        waited = []

        def wait() -> None:
            waited.append(True)
            self._note("another process builds this plan: waiting for it")

        try:
            with locked(self._path(key).with_suffix(".lock"), wait):
                yield bool(waited)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def _require_space(self, need_bytes: int) -> None:
        free = free_bytes(self.folder)
        if free < need_bytes:
            raise EngineError(
                f"a plan needs about {need_bytes / _MIB:.0f} MiB under {self.folder}, which has "
                f"{free / _MIB:.0f}: free some space or {REMEDY}"
            )

    def _store(self, key: PlanKey, plan: NewPlan) -> None:
        """Writes a plan; whatever interrupts this leaves no half of one."""
        header = {
            "format": FORMAT,
            "key": asdict(key),
            "size": plan.data.nbytes,
            "sha256": hashlib.sha256(plan.data).hexdigest(),
            "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "facts": dict(plan.facts),
        }
        line = json.dumps(header).encode("ascii") + b"\n"
        assert len(line) <= HEADER_BYTES, "facts outgrew the plan's header"
        path = self._path(key)
        with written_beside(path, private=True) as beside, beside.open("wb") as out:
            out.write(line.ljust(HEADER_BYTES, b" "))
            out.write(plan.data)


def _unwritable(folder: Path, error: OSError) -> EngineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(f"no space for a plan under {folder}: free some, or {REMEDY}")
    return EngineError(f"cannot write plans to {folder} ({error.strerror}): {REMEDY}")


def _header(page: bytes) -> dict[str, Any]:
    """Reads the first line; ValueError if it is not one of ours."""
    try:
        header = parse_json(page.partition(b"\n")[0])
        known = header["format"] == FORMAT and isinstance(header["facts"], dict)
        if known and isinstance(header["key"]["bundle_sha256"], str):
            return header
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError("its header is damaged")


def _read(path: Path, key: PlanKey) -> memoryview:
    """Maps a plan and checks all of it; ValueError says what is wrong."""
    with path.open("rb") as handle:
        if os.fstat(handle.fileno()).st_size <= HEADER_BYTES:
            raise ValueError("it is truncated")
        view = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    header = _header(bytes(view[:HEADER_BYTES]))
    if header["key"] != json.loads(json.dumps(asdict(key))):
        raise ValueError("it was built for something else")
    plan = view[HEADER_BYTES:]
    if header.get("size") != plan.nbytes:
        raise ValueError("it is truncated")
    if header.get("sha256") != hashlib.sha256(plan).hexdigest():
        raise ValueError("it is damaged")
    return plan
