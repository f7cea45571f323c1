"""Plans right after an export: built where TensorRT and the target's GPU are, said where not."""

from dataclasses import replace

import pytest
from dlm_edge.export import plans
from dlm_edge.export.plans import build_if_at_hand
from dlm_edge.runtime.engines.plan_cache import PlanCache
from dlm_edge.runtime.errors import EngineError
from emulation.board import GPU, make_board
from toy_bundle import write_toy


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return write_toy(tmp_path)


@pytest.fixture
def board(toy, monkeypatch):
    found = make_board(monkeypatch)
    monkeypatch.setattr(plans, "at_hand", lambda: (found.trt, GPU))
    return found


@pytest.mark.parametrize("target", ["host", "orin-nano", "orin-nx", "agx-orin"])
def test_a_plan_is_built_on_the_target_itself_once(toy, board, target):
    for _ in range(2):
        found = build_if_at_hand(toy, target)
        assert [plan["file"] for plan in found["plans"]] == ["graphs/denoise.onnx"]
        assert found["why"] == ""
    assert board.trt.num_built == 1
    assert len(PlanCache().entries()) == 1


def test_another_gpu_than_the_targets_builds_nothing_and_says_so(toy, board, monkeypatch):
    hopper = replace(GPU, name="H200", compute_capability="9.0")
    monkeypatch.setattr(plans, "at_hand", lambda: (board.trt, hopper))
    found = build_if_at_hand(toy, "orin-nano")
    assert found["plans"] == []
    assert found["why"] == "orin-nano has compute capability 8.7, H200 here 9.0"
    assert build_if_at_hand(toy, "host")["plans"]


def test_a_cpu_bundle_needs_none(toy, board):
    assert "without TensorRT" in build_if_at_hand(toy, "cpu")["why"]
    assert board.trt.num_built == 0


def test_without_tensorrt_the_reason_is_given_and_the_export_stands(toy, monkeypatch):
    def missing():
        raise EngineError("the tensorrt engine needs the Python package tensorrt")

    monkeypatch.setattr(plans, "at_hand", missing)
    found = build_if_at_hand(toy, "orin-nano")
    assert found == {"plans": [], "why": "the tensorrt engine needs the Python package tensorrt"}
