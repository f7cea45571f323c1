import hashlib
import io
import json
import os
import stat
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from dlm_edge.runtime import archive, files, unpack
from dlm_edge.runtime.bundle import open_bundle, write_bundle
from dlm_edge.runtime.errors import BundleError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_bundle import toy_manifest, toy_members, write_toy


@pytest.fixture
def bundle_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_toy(tmp_path)


@pytest.fixture(scope="module")
def bundle_bytes(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("bytes")).read_bytes()


def require_one_line(error: BundleError) -> None:
    assert "\n" not in str(error)


def refused(path, **options) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rezipped(data: bytes, change) -> bytes:
    """Writes the zip again with `change(entries)` applied to its list of (ZipInfo, bytes)."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        entries = [(info, source.read(info)) for info in source.infolist()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for info, content in change(entries):
            target.writestr(info, content)
    return out.getvalue()


def with_manifest(data: bytes, change) -> bytes:
    def edit(entries):
        for info, content in entries:
            if info.filename == "manifest.json":
                value = json.loads(content)
                change(value)
                yield info, json.dumps(value).encode()
            else:
                yield info, content

    return rezipped(data, edit)


def test_a_bundle_opens_with_every_member_unpacked(bundle_path):
    bundle = open_bundle(bundle_path)
    assert bundle.sha256 == hashlib.sha256(bundle_path.read_bytes()).hexdigest()
    assert bundle.manifest.graphs == toy_manifest().graphs
    assert bundle.report == {}
    for name, member in bundle.manifest.members.items():
        data = bundle.member(name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (member.size, member.sha256)
    with pytest.raises(BundleError, match="no member"):
        bundle.member("missing")


def test_equal_members_give_equal_bytes(tmp_path):
    first = write_toy(tmp_path / "a").read_bytes()
    second = write_toy(tmp_path / "b").read_bytes()
    assert first == second


def test_members_are_deflated_only_where_that_saves_something(tmp_path):
    members = toy_members(tmp_path)
    members["noise.bin"] = np.random.default_rng(0).bytes(5000)
    members["zeros.bin"] = bytes(5000)
    path = tmp_path / "x.dlm"
    write_bundle(path, toy_manifest(), members)
    with zipfile.ZipFile(path) as source:
        assert source.getinfo("noise.bin").compress_type == zipfile.ZIP_STORED
        assert source.getinfo("zeros.bin").compress_type == zipfile.ZIP_DEFLATED
    assert open_bundle(path).member("zeros.bin").read_bytes() == bytes(5000)


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
    monkeypatch.setattr("dlm_edge.runtime.bundle.hash_file", lambda handle: pytest.fail("hashed"))
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


def test_expect_sha256_refuses_any_other_bundle(bundle_path):
    digest = hashlib.sha256(bundle_path.read_bytes()).hexdigest()
    assert open_bundle(bundle_path, expect_sha256=digest.upper()).sha256 == digest
    assert "wanted" in refused(bundle_path, expect_sha256="0" * 64)


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


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path, data: None, "cannot open"),
        (lambda path, data: path.mkdir(), "cannot open"),
        (lambda path, data: path.write_bytes(b""), "empty"),
        (lambda path, data: path.write_bytes(b"hello"), "zip"),
        (lambda path, data: path.write_bytes(data[:-1]), "damaged"),
        (lambda path, data: path.write_bytes(data[: len(data) // 2]), "damaged"),
        (lambda path, data: path.write_bytes(rezipped(data, lambda e: e[1:])), "manifest.json"),
        (lambda path, data: path.write_bytes(rezipped(data, lambda e: e[:-1])), "member"),
    ],
    ids=["missing", "folder", "empty", "text", "cut", "half", "no-manifest", "no-tokenizer"],
)
def test_what_is_no_bundle_is_one_line_of_bundle_error(bundle_bytes, tmp_path, make, word):
    path = tmp_path / "x.dlm"
    make(path, bundle_bytes)
    assert word in refused(path)


def extra(name, content=b"x", **attributes):
    def change(entries):
        info = zipfile.ZipInfo(name)
        for key, value in attributes.items():
            setattr(info, key, value)
        return [*entries, (info, content)]

    return change


@pytest.mark.parametrize(
    "change",
    [
        extra("../x"),
        extra("/x"),
        extra("a\\..\\x"),
        extra("card.md"),
        extra("unknown"),
        extra("folder/"),
        extra("link", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16),
    ],
    ids=["parent", "absolute", "backslash", "twice", "unknown", "folder", "link"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_beside_the_manifest_are_refused(bundle_bytes, tmp_path, change):
    path = tmp_path / "x.dlm"
    path.write_bytes(rezipped(bundle_bytes, change))
    refused(path)
    assert not (tmp_path.parent / "x").exists()


def set_member(name, key, value):
    def change(manifest):
        manifest["members"][name][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (set_member("card.md", "sha256", "0" * 64), "SHA-256"),
        (set_member("graphs/denoise.weights", "sha256", "0" * 64), "SHA-256"),
        (set_member("card.md", "size", 3), "bytes"),
        (set_member("card.md", "size", 1 << 40), "size"),
        (lambda manifest: manifest["members"].pop("card.md"), "card.md"),
        (lambda manifest: manifest.update(schema_version=99), "schema version"),
        (
            lambda manifest: manifest["members"].update({"../x": {"sha256": "0" * 64, "size": 1}}),
            "member name",
        ),
    ],
    ids=["hash", "weights", "size", "huge", "missing", "schema", "parent"],
)
def test_a_manifest_that_lies_is_refused(bundle_bytes, tmp_path, change, word):
    path = tmp_path / "x.dlm"
    path.write_bytes(with_manifest(bundle_bytes, change))
    assert word in refused(path)


def test_a_zip_bomb_stops_at_the_stated_size(bundle_bytes, tmp_path, monkeypatch):
    """The directory and the manifest state 7 bytes, the data inflates to 50 MB."""
    bomb = zipfile.ZipInfo("card.md")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    size = 50_000_000
    data = rezipped(
        bundle_bytes,
        lambda entries: [
            (bomb, bytes(size)) if info.filename == "card.md" else (info, content)
            for info, content in entries
        ],
    )
    true_size, stated = size.to_bytes(4, "little"), (7).to_bytes(4, "little")
    path = tmp_path / "x.dlm"
    path.write_bytes(data.replace(true_size, stated))
    read = []
    original = zipfile.ZipExtFile.read

    def counting(self, n=-1):
        chunk = original(self, n)
        read.append(len(chunk))
        return chunk

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    refused(path)
    assert sum(read) < 4 * archive.CHUNK


def test_a_graph_that_reads_foreign_files_is_refused(tmp_path):
    members = toy_members(tmp_path)
    graph = members["graphs/denoise.onnx"]
    assert isinstance(graph, Path)
    for location in ("/etc/passwd", "../denoise.weights", "other.weights", ""):
        model = onnx.load_from_string(graph.read_bytes())
        outside = next(item for item in model.graph.initializer if item.external_data)
        outside.external_data[0].value = location
        hostile = {**members, "graphs/denoise.onnx": model.SerializeToString()}
        path = tmp_path / "x.dlm"
        write_bundle(path, toy_manifest(), hostile)
        assert "do not use" in refused(path)


def test_nothing_stays_when_writing_fails(tmp_path, monkeypatch):
    members = toy_members(tmp_path / "parts")
    path = tmp_path / "x.dlm"

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BundleError, match="No space left"):
        write_bundle(path, toy_manifest(), members)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(path, toy_manifest(), members)
    assert [item.name for item in tmp_path.iterdir()] == ["parts"]


def test_an_unsound_manifest_is_not_written(tmp_path):
    with pytest.raises(BundleError, match="eos_token_id"):
        write_bundle(tmp_path / "x.dlm", toy_manifest(eos_token_id=99), toy_members(tmp_path))
    assert not (tmp_path / "x.dlm").exists()


SLOW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def read_or_refuse(path: Path, data: bytes, intact: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    try:
        bundle = open_bundle(path)
    except BundleError as error:
        require_one_line(error)
        return
    for name, member in bundle.manifest.members.items():
        assert hashlib.sha256((bundle.folder / name).read_bytes()).hexdigest() == member.sha256
    assert len(data) >= len(intact) // 2


@SLOW
@given(data=st.data())
def test_a_truncated_bundle_is_refused(bundle_bytes, tmp_path, data):
    cut = data.draw(st.integers(0, len(bundle_bytes) - 1))
    path = tmp_path / "x.dlm"
    path.write_bytes(bundle_bytes[:cut])
    refused(path)


@SLOW
@given(data=st.data())
def test_a_bit_flipped_bundle_is_refused_or_whole(bundle_bytes, tmp_path, data):
    """A flip may hit what does not matter (a date in the zip); members are as hashed, or none."""
    at = data.draw(st.integers(0, len(bundle_bytes) - 1))
    flipped = bytearray(bundle_bytes)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    read_or_refuse(tmp_path / "x.dlm", bytes(flipped), bundle_bytes)


@SLOW
@given(data=st.data())
def test_a_damaged_directory_of_the_zip_is_refused_or_whole(bundle_bytes, tmp_path, data):
    """The last 800 bytes hold the zip's directory, where every field steers the reader."""
    damaged = bytearray(bundle_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(len(damaged) - 800, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    read_or_refuse(tmp_path / "x.dlm", bytes(damaged), bundle_bytes)


def test_a_member_whose_name_begins_with_nul_is_refused(bundle_bytes, tmp_path):
    at = bundle_bytes.rindex(b"tokenizer.json")  # in the directory; zipfile cuts names at NUL
    path = tmp_path / "x.dlm"
    path.write_bytes(bundle_bytes[:at] + b"\0" + bundle_bytes[at + 1 :])
    assert "no name" in refused(path)


@SLOW
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path, data):
    path = tmp_path / "x.dlm"
    path.write_bytes(data)
    refused(path)
