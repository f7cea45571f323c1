"""Our TensorRT code against the members that TensorRT 10.3, 10.16 and 11 have in common."""

import json
from pathlib import Path

import pytest
from emulation import tensorrt as stand_in
from trt.api_walk import HOLDS, Walk

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "runtime" / "engines").glob("tensorrt*.py"))
SUPPORTED = {"10.3", "10.16", "11.4"}
WEAK_TYPING = {("BuilderFlag", "FP16"), ("BuilderFlag", "INT8")}

text = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text("utf-8"))
API = {name: members for name, members in text.items() if name != "about"}
WALKS = [Walk(path, API) for path in SOURCES]
TOUCHED = [
    (path.name, *found)
    for path, walk in zip(SOURCES, WALKS, strict=True)
    for found in walk.touched()
]


def versions(owner, member):
    return set(API.get(owner, {}).get(member, {}).get("in", "").split(" | "))


def test_the_walk_sees_the_builder():
    found = {(owner, member) for _, owner, member, _ in TOUCHED}
    assert ("Builder", "build_serialized_network") in found
    assert ("module", "OnnxParser") in found
    assert ("IProgressMonitor", "step_complete") in found
    assert ("ParserError", "desc") in found


def test_every_member_we_touch_is_in_every_supported_version():
    wrong = [
        f"{file}:{line} {owner}.{member}"
        for file, owner, member, line in TOUCHED
        if (member not in API if owner == "module" else not versions(owner, member) >= SUPPORTED)
    ]
    assert not wrong


def test_every_tensorrt_object_is_held_by_a_name_the_walk_knows():
    assert not [line for walk in WALKS for line in walk.misnamed()]


def test_flags_of_weak_typing_are_looked_up_never_taken_for_granted():
    touched = {(owner, member) for _, owner, member, _ in TOUCHED}
    for owner, member in WEAK_TYPING:
        assert (owner, member) not in touched
        assert "11.4" not in versions(owner, member)


def test_the_table_lists_nothing_that_we_do_not_touch():
    touched = {(owner, member) for _, owner, member, _ in TOUCHED} | WEAK_TYPING
    listed = {(owner, member) for owner, members in API.items() for member in members}
    assert listed <= touched
    assert {name for name in API if not API[name]} <= {m for o, m in touched if o == "module"}


@pytest.mark.parametrize(
    "fake", [stand_in.Runtime, stand_in.ICudaEngine, stand_in.IExecutionContext]
)
def test_the_stand_in_for_the_runtime_has_the_members_we_touch_and_no_others(fake):
    own = {name for name in vars(fake) if not name.startswith("_")}
    assert own == {member for _, owner, member, _ in TOUCHED if owner == fake.__name__}


@pytest.mark.parametrize(
    "source",
    [
        "x = trt.Gone",
        "y = builder.platform_has_fast_fp16",
        "config.add_optimization_profile(builder.gone())",
        "trt.BuilderFlag.FP16",
    ],
)
def test_the_walk_notices_what_a_version_lacks(source, tmp_path):
    path = tmp_path / "tensorrt_x.py"
    path.write_text(source)
    found = list(Walk(path, API).touched())
    assert any(
        member not in API if owner == "module" else not versions(owner, member) >= SUPPORTED
        for owner, member, _ in found
    )


def test_the_walk_notices_an_object_under_another_name(tmp_path):
    path = tmp_path / "tensorrt_x.py"
    path.write_text("thing = builder.create_builder_config()\n")
    assert list(Walk(path, API).misnamed())


@pytest.mark.trt
def test_the_table_agrees_with_the_bindings_that_are_here(trt):
    for owner, members in API.items():
        for member in members:
            assert hasattr(getattr(trt, owner), member) == ("rtx 1.7" in versions(owner, member))
    assert set(HOLDS.values()) - {"module"} <= set(dir(trt))
