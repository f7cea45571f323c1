import hashlib
import zipfile

import numpy as np
import pytest
from dlm_edge.runtime import files
from dlm_edge.runtime.bundle.bundle import open_bundle, write_bundle
from dlm_edge.runtime.errors import BundleError
from foreign_bundles import refused
from toy_bundle import toy_manifest, toy_members, write_toy


def test_a_bundle_opens_with_every_member_unpacked(bundle_path):
    bundle = open_bundle(bundle_path)
    assert bundle.sha256 == hashlib.sha256(bundle_path.read_bytes()).hexdigest()
    assert bundle.manifest.graphs == toy_manifest().graphs
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


def test_expect_sha256_refuses_any_other_bundle(bundle_path):
    digest = hashlib.sha256(bundle_path.read_bytes()).hexdigest()
    assert open_bundle(bundle_path, expect_sha256=digest.upper()).sha256 == digest
    assert "wanted" in refused(bundle_path, expect_sha256="0" * 64)


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
