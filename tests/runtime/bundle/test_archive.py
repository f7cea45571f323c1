"""Bundles that lie, bundles that are damaged: refused in one line."""

import hashlib
import os
import stat
import time
import zipfile
from pathlib import Path

import onnx
import pytest
from dlm_edge.runtime.bundle import archive
from dlm_edge.runtime.bundle.bundle import open_bundle, write_bundle
from dlm_edge.runtime.errors import BundleError
from foreign_bundles import refused, require_one_line, rezipped, with_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_bundle import toy_manifest, toy_members


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


SLOW = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)


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
