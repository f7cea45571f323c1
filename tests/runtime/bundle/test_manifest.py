import json
from dataclasses import asdict

import pytest
from dlm_edge.runtime.bundle.manifest import Member
from dlm_edge.runtime.bundle.manifest_check import check_member_name
from dlm_edge.runtime.bundle.manifest_json import (
    manifest_from_dict,
    manifest_from_json,
    manifest_to_json,
)
from dlm_edge.runtime.errors import BundleError
from foreign_bundles import require_one_line
from hypothesis import given
from hypothesis import strategies as st
from toy_bundle import toy_manifest

MEMBERS = {
    name: Member(sha256="0" * 64, size=1)
    for name in ("graphs/denoise.onnx", "graphs/denoise.weights", "tokenizer.json")
}


def valid() -> dict:
    return json.loads(manifest_to_json(toy_manifest(members=MEMBERS)))


def changed(path: str, value: object) -> dict:
    data = valid()
    *parents, last = path.split(".")
    at = data
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    return data


def test_a_manifest_survives_the_way_through_json():
    manifest = toy_manifest(members=MEMBERS)
    assert asdict(manifest_from_json(manifest_to_json(manifest))) == asdict(
        manifest_from_dict(asdict(manifest))
    )
    assert manifest_to_json(manifest) == manifest_to_json(manifest)


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("schema_version", 1, "export the checkpoint again"),
        ("schema_version", 3, "schema version"),
        ("schema_version", True, "schema version"),
        ("family", "", "family"),
        ("family", "a b", "family"),
        ("vocab_size", 1, "vocab_size"),
        ("vocab_size", "20", "vocab_size"),
        ("vocab_size", 21, "logits"),
        ("mask_token_id", 20, "mask_token_id"),
        ("mask_token_id", 0, "no start or end token"),
        ("end_ids", [1], "mask_token_id"),
        ("eos_token_id", None, "eos_token_id"),
        ("eos_token_id", -1, "eos_token_id"),
        ("logit_shift", 2, "logit_shift"),
        ("logit_shift", True, "logit_shift"),
        ("precision", "fp64", "precision"),
        ("graphs", [], "graphs"),
        ("graphs.0.file", "graphs/other.onnx", "graphs/other.onnx"),
        ("graphs.0.file", "../x", "../x"),
        ("graphs.0.dims.context", 16, "kv"),
        ("graphs.0.dims.rows", 0, "rows"),
        ("graphs.0.dims.batch", 0, "batch"),
        ("graphs.0.dims", [], "dims"),
        ("graphs.0.block", 0, "block"),
        ("graphs.0.purpose", "", "purpose"),
        ("graphs.0.inputs.0.lifetime", "week", "lifetime"),
        ("graphs.0.extra", 1, "extra"),
        ("graphs.0.inputs.0.shape", [1, 5], "ids"),
        ("graphs.0.inputs.0.dtype", "object", "dtype"),
        ("graphs.0.inputs.0.role", "start", "role"),
        ("graphs.0.inputs.2.shape", [4, 1, 1, 2, 1, 1 << 31], "bytes"),
        ("graphs.0.outputs.1.shape", [4, 1, 1, 2, 1, 5], "kv_new"),
        ("model.head_dim", 5, "kv"),
        ("members.tokenizer~json", {"sha256": "0" * 64, "size": 1}, "member name"),
        ("members", {}, "members"),
        ("block_sizes", [], "block_sizes"),
        ("provenance", [], "provenance"),
        ("start_ids", [-1], "start_ids"),
        ("start_ids", 3, "start_ids"),
        ("end_ids", [10**9], "end_ids"),
        ("unknown", 1, "unknown"),
    ],
)
def test_a_wrong_field_is_named(path, value, word):
    with pytest.raises(BundleError, match="manifest") as caught:
        manifest_from_dict(changed(path, value))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


NEWER = {"start_ids", "end_ids"}
"""Fields that the oldest bundles do not have."""


def test_a_text_of_an_older_bundle_begins_and_ends_with_its_end_of_text():
    data = {key: value for key, value in valid().items() if key not in NEWER}
    manifest = manifest_from_dict(data)
    eos = manifest.eos_token_id
    assert manifest.framing.prompt([5, 6]) == (eos, 5, 6)
    assert manifest.framing.document([5, 6]) == [eos, 5, 6]
    assert manifest.end_ids == ()


@pytest.mark.parametrize("key", sorted(set(valid()) - NEWER))
def test_each_missing_field_is_refused(key):
    data = valid()
    del data[key]
    with pytest.raises(BundleError):
        manifest_from_dict(data)


@pytest.mark.parametrize(
    "name",
    ["", "/x", "../x", "a/../b", "a//b", "a\\b", ".hidden", "a/.b", "a/", "x" * 200, "a\0", "é"],
)
def test_unsafe_member_names_are_refused(name):
    with pytest.raises(BundleError):
        check_member_name(name)


@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("a", "a/b"), ("a/B", "A/c")],
)
def test_members_that_collide_on_some_file_system_are_refused(names):
    data = valid()
    data["members"] |= {name: {"sha256": "0" * 64, "size": 1} for name in names}
    with pytest.raises(BundleError):
        manifest_from_dict(data)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"schema_version": 1}',
    ],
)
def test_what_is_no_manifest_is_one_line_of_bundle_error(text):
    with pytest.raises(BundleError) as caught:
        manifest_from_json(text)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PATHS = [
    *valid(),
    *(f"graphs.0.{key}" for key in valid()["graphs"][0]),
    *(f"graphs.0.inputs.0.{key}" for key in ("name", "dtype", "shape", "role")),
    "members.tokenizer.json",
]


@given(path=st.sampled_from([path for path in PATHS if "tokenizer" not in path]), value=JSON)
def test_any_value_in_any_place_is_read_or_refused(path, value):
    try:
        manifest = manifest_from_dict(changed(path, value))
    except BundleError as error:
        require_one_line(error)
    else:
        assert manifest_from_json(manifest_to_json(manifest)) == manifest


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(text):
    with pytest.raises(BundleError):
        manifest_from_json(text)


@given(data=st.data())
def test_a_damaged_manifest_is_read_or_refused(data):
    text = bytearray(manifest_to_json(toy_manifest(members=MEMBERS)))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    try:
        manifest_from_json(bytes(text))
    except BundleError as error:
        require_one_line(error)
