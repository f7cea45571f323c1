"""The bundle `model.dlm`: one zip, written on the desktop, unpacked and verified where it runs.

Members: `manifest.json`, `graphs/*.onnx` with their external weights, `tokenizer.json`,
`report.json`, `card.md`, golden vectors. On first use the members are unpacked into the user's
cache directory under the bundle's SHA-256, hashed there, and memory-mapped from there. Later loads
compare the manifests, hash the small members again and check the sizes of the large ones.

What it does not know: what a graph computes, or which family the bundle is of.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BundleError
from ..files import writing
from .archive import (
    check_directory,
    describe,
    hash_file,
    open_archive,
    read_small,
    write_archive,
)
from .manifest import Manifest
from .manifest_check import MANIFEST_NAME
from .manifest_json import MAX_MEMBERS, manifest_from_json, manifest_to_json
from .unpack import known_entry, make_entry

MAX_MANIFEST_BYTES = 4 << 20
REPORT_NAME = "report.json"
DEFAULT_NAME = "model.dlm"
DESKTOP = "Pipeline.from_pretrained of dlm_edge.train.pretrained"
"""What a bundle beside other files of a model is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle whose members lie unpacked in the cache."""

    path: Path
    """The `.dlm` file."""
    sha256: str
    """Of the `.dlm` file."""
    manifest: Manifest
    folder: Path
    """Where the members lie."""

    def member(self, name: str) -> Path:
        """Returns the path of a member; BundleError if the bundle has none of this name."""
        if name not in self.manifest.members:
            raise BundleError(f"{self.path.name} has no member {name}: export it again")
        return self.folder / name

    @property
    def weights_bytes(self) -> int:
        """Bytes of all graphs and their weights."""
        return sum(
            member.size
            for name, member in self.manifest.members.items()
            if name.startswith("graphs/")
        )


def default_bundle_path() -> Path:
    """Returns the model that ships with the package; BundleError if there is none."""
    found = sorted((Path(__file__).parents[1] / "models").glob("*.dlm"))
    if not found:
        raise BundleError(
            "this installation ships no model: name a bundle (model.dlm) or install the package "
            "from its wheel"
        )
    return found[0]


def write_bundle(
    path: Path,
    manifest: Manifest,
    members: Mapping[str, bytes | Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Packs a bundle and returns its SHA-256; equal members give equal bytes.

    Args:
        manifest: Its `members` is filled in here.
        members: Member name → bytes, or a file to copy.

    Raises:
        BundleError: The manifest is unsound, or the file cannot be written.
    """
    described = {name: describe(content) for name, content in members.items()}
    text = manifest_to_json(replace(manifest, members=described))
    with writing(path, "free some space or choose another place", BundleError):
        write_archive(path, {MANIFEST_NAME: text, **dict(sorted(members.items()))}, progress)
        with path.open("rb") as handle:
            return hash_file(handle)


def holds_bundle(path: str | Path) -> bool:
    """Tells whether a path means a bundle: a file, a `.dlm` name, or a folder with such a file."""
    path = Path(path).expanduser()
    return path.is_file() or path.suffix == ".dlm" or any(path.glob("*.dlm"))


def find_bundle(path: str | Path) -> Path:
    """Gives the bundle that a path means: the file itself, or the one bundle of a folder.

    Raises:
        BundleError: Neither; or a folder with several bundles, or with a checkpoint only.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if path.suffix != ".dlm" and not path.exists():
            raise BundleError(
                f"{path} is no file or folder here; the name of a checkpoint on the Hugging Face "
                f"hub is opened by {DESKTOP}, or becomes a bundle: dlm-export {path} -o model.dlm"
            )
        return path
    found = sorted(path.glob("*.dlm"))
    if path / DEFAULT_NAME in found:
        return path / DEFAULT_NAME
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(item.name for item in found[:5])
        raise BundleError(f"{path} holds {len(found)} bundles ({names}): name one of these files")
    if (path / "model.safetensors").is_file():
        raise BundleError(
            f"{path} holds a checkpoint, which needs torch: open it with {DESKTOP}, or make a "
            f"bundle of it: dlm-export {path} -o {path / DEFAULT_NAME}"
        )
    raise BundleError(f"{path} holds no bundle (a .dlm file); choose another folder")


def open_bundle(path: str | Path, *, expect_sha256: str | None = None) -> Bundle:
    """Verifies a bundle, unpacks it on first use and says where it lies.

    Args:
        expect_sha256: If given, any other bundle is refused (and the whole file is hashed).

    Raises:
        BundleError: Missing, damaged, foreign or other than expected; or no cache to unpack into.
    """
    path = Path(path)
    with _open_file(path) as handle:
        archive = open_archive(handle, MAX_MEMBERS + 1)
        text = read_small(archive, MANIFEST_NAME, MAX_MANIFEST_BYTES)
        manifest = manifest_from_json(text)
        check_directory(archive, manifest.members, (MANIFEST_NAME,))
        entry = None if expect_sha256 else known_entry(path, handle, text, manifest)
        if entry is None:
            digest = hash_file(handle)
            if expect_sha256 and digest != expect_sha256.strip().lower():
                raise BundleError(
                    f"{path.name} has SHA-256 {digest}, wanted {expect_sha256[:64]}: this is not "
                    "the expected bundle, get that one from its source"
                )
            entry = make_entry(path, handle, archive, digest, text, manifest)
    return Bundle(path=path, sha256=entry.name, manifest=manifest, folder=entry)


def _open_file(path: Path) -> BinaryIO:
    try:
        handle = path.open("rb")
    except OSError as error:
        raise BundleError(
            f"cannot open the bundle {path}: {error.strerror}; check the path or make one with "
            "dlm-export"
        ) from error
    status = os.fstat(handle.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        handle.close()
        raise BundleError(
            f"{path} is not a file or is empty; name a .dlm file that dlm-export wrote"
        )
    return handle


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Returns what a report says of a bundle."""
    manifest = bundle.manifest
    return {
        "name": bundle.path.name,
        "sha256": bundle.sha256,
        "size_mib": round(bundle.path.stat().st_size / (1 << 20), 2),
        "family": manifest.family,
        "precision": manifest.precision,
        "target": manifest.target,
        "num_parameters": manifest.model.get("num_parameters"),
        "vocab_size": manifest.vocab_size,
        "block_sizes": list(manifest.block_sizes),
    }
