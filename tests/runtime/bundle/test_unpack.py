"""The user's cache of unpacked bundles."""

import os
import stat
import threading

import pytest
from dlm_edge.runtime.bundle import unpack
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.errors import BundleError
from foreign_bundles import refused, with_manifest
from toy_bundle import write_toy


def test_the_cache_is_private(bundle_path, tmp_path):
    open_bundle(bundle_path)
    root = tmp_path / "cache" / "dlm-edge"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for folder in [path for path in root.rglob("*") if path.is_dir()]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    root.chmod(0o777)
    assert "chmod 700" in refused(bundle_path)


def test_the_second_load_hashes_small_members_only(bundle_path, monkeypatch):
    open_bundle(bundle_path)
    hashed = []
    original = unpack.describe
    monkeypatch.setattr(unpack, "describe", lambda path: hashed.append(path) or original(path))
    monkeypatch.setattr(unpack, "SMALL_BYTES", 100)
    monkeypatch.setattr(
        "dlm_edge.runtime.bundle.bundle.hash_file", lambda handle: pytest.fail("hashed")
    )
    open_bundle(bundle_path)
    assert {path.name for path in hashed} == {"card.md", "report.json"}


def test_another_file_of_the_same_name_is_not_mistaken_for_the_first(bundle_path, tmp_path):
    first = open_bundle(bundle_path)
    write_toy(tmp_path, decoding={"rule": "margin"})
    second = open_bundle(bundle_path)
    assert second.sha256 != first.sha256
    assert second.manifest.decoding == {"rule": "margin"}


def test_a_changed_file_with_the_old_size_and_time_is_still_noticed(bundle_path):
    """Size and time are only a hint: the manifests decide."""
    first = open_bundle(bundle_path)
    status = bundle_path.stat()
    data = bundle_path.read_bytes()
    with bundle_path.open("r+b") as handle:
        handle.write(with_manifest(data, lambda value: None).ljust(len(data), b"\0")[: len(data)])
    os.utime(bundle_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        second = open_bundle(bundle_path)
    except BundleError:
        return
    assert second.sha256 != first.sha256


@pytest.mark.parametrize("name", ["tokenizer.json", "graphs/denoise.weights", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "removed", "linked"])
def test_a_damaged_cache_entry_is_unpacked_again(bundle_path, name, damage, tmp_path):
    bundle = open_bundle(bundle_path)
    place = bundle.folder / name
    good = place.read_bytes()
    match damage:
        case "changed":
            place.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        case "cut":
            place.write_bytes(good[:-1])
        case "removed":
            place.unlink()
        case "linked":
            place.rename(tmp_path / "elsewhere")
            place.symlink_to(tmp_path / "elsewhere")
    again = open_bundle(bundle_path)
    assert (again.folder / name).read_bytes() == good
    assert again.folder == bundle.folder
    assert not (again.folder / name).is_symlink() or name == "manifest.json"


def test_a_damaged_hint_is_ignored(bundle_path, tmp_path):
    open_bundle(bundle_path)
    (hint,) = (tmp_path / "cache" / "dlm-edge" / "index").iterdir()
    for text in (b"", b"[]", b'{"sha256": "../..", "identity": 1}', b"\xff"):
        hint.write_bytes(text)
        open_bundle(bundle_path)


def test_an_unwritable_cache_names_the_remedy(bundle_path, tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    assert "XDG_CACHE_HOME" in refused(bundle_path)


def test_a_full_disk_names_the_remedy(bundle_path, monkeypatch):
    monkeypatch.setattr(unpack, "free_bytes", lambda folder: 10)
    assert "free some space" in refused(bundle_path)


def test_threads_that_unpack_at_once_get_one_sound_entry(bundle_path):
    found, failed = [], []

    def work():
        try:
            found.append(open_bundle(bundle_path).folder)
        except BundleError as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
    assert len(set(found)) == 1
    assert not list(found[0].parent.glob("*.partial"))
