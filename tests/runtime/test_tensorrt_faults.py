"""What can go wrong between a bundle and its tokens on TensorRT: one line each, or a rebuild."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
from click.testing import CliRunner
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.engines import plan_cache, tensorrt_open, tensorrt_plans
from dlm_edge.runtime.engines.device_buffers import buffer_bytes, out_of_memory
from dlm_edge.runtime.engines.plan_cache import HEADER_BYTES, PlanCache
from dlm_edge.runtime.engines.tensorrt_build import BuildSettings, _failure
from dlm_edge.runtime.errors import DeviceError
from emulation import board as stand_ins
from emulation.board import make_board
from emulation.tensorrt import SCRATCH_BYTES, ICudaEngine
from toy_bundle import toy_manifest, write_toy


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return str(write_toy(tmp_path))


@pytest.fixture
def board(toy, monkeypatch):
    return make_board(monkeypatch)


def run(*arguments):
    return CliRunner().invoke(main, [*arguments, "--engine", "tensorrt"])


def text(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def line(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    (found,) = result.stderr.splitlines()
    return found


def plans():
    return sorted(PlanCache().folder.glob("*.plan"))


def test_another_version_of_tensorrt_builds_plans_of_its_own(toy, board):
    first = text(toy, "abc")
    board.trt.__version__ = "11.4.1"
    assert text(toy, "abc") == first
    assert board.trt.num_built == 2
    assert len(plans()) == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[:100], "truncated"),
        (lambda data: data[:HEADER_BYTES] + bytes([data[HEADER_BYTES] ^ 1])
         + data[HEADER_BYTES + 1:], "damaged"),
        (lambda data: b"{" + data[1:].replace(b"Orin", b"Nano", 1), "built for something else"),
    ],
)  # fmt: skip
def test_a_plan_that_is_damaged_or_another_boards_is_built_again_and_that_is_said(
    toy, board, damage, reason
):
    wanted, _ = text(toy, "abc")
    (path,) = plans()
    path.write_bytes(damage(path.read_bytes()))
    found, notes = text(toy, "abc")
    assert found == wanted
    assert reason in notes
    assert notes.count("built again") == 1
    assert board.trt.num_built == 2
    assert text(toy, "abc") == (wanted, "")


def test_a_plan_copied_from_another_board_is_not_taken(toy, board, monkeypatch):
    text(toy, "abc")
    (old,) = plans()
    other = stand_ins.GpuFacts(
        name="Orin NX", compute_capability="8.7", driver_version=12060, power_mode=""
    )
    monkeypatch.setattr(tensorrt_open, "read_gpu", lambda: other)
    text(toy, "abc")
    (new,) = set(plans()) - {old}
    shutil.copy(old, new)
    _, notes = text(toy, "abc")
    assert "built for something else" in notes
    assert board.trt.num_built == 3


def test_memory_that_runs_out_says_how_much_was_needed_and_what_would_fit(toy, monkeypatch):
    board = make_board(monkeypatch, capacity=1000)
    found = line(toy, "abc")
    assert "out of device memory: buffers need" in found
    assert "scratch" in found
    assert "left in one piece" in found
    board.device._allocated = 0
    record = CliRunner().invoke(main, [toy, "abc"])  # auto
    assert record.exit_code == 0
    assert "TensorRT is here but fails: out of device memory" in record.stderr


def test_the_advice_names_a_shape_that_fits():
    specs = toy_manifest().graphs
    small, large = (sum(buffer_bytes([spec]).values()) for spec in specs)
    assert small < large
    found = out_of_memory(specs, 100, small + 100)
    assert "export with --block 4 --context 4" in found
    assert "close other programs" in out_of_memory(specs, 100, small + 99)
    assert "no shape of the bundle fits alone" in out_of_memory(specs, 100, small + 99)
    assert "--block 4 --context 8" in out_of_memory(specs, 100, large + 100)


def test_a_plan_too_large_to_load_is_not_built_again(toy, board, monkeypatch):
    monkeypatch.setattr(stand_ins.FakeTensorrt, "Runtime", lambda self, logger: _Runtime(logger))
    found = line(toy, "abc")
    assert "out of device memory while loading a plan of" in found
    assert "MiB are free" in found
    assert board.trt.num_built == 1


class _Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, data):
        return None


@pytest.fixture(autouse=True)
def logger_that_tells(monkeypatch, request):
    """The builder's logger, with what a full memory makes TensorRT say."""
    if "too_large_to_load" not in request.node.name:
        return
    from dlm_edge.runtime.engines import tensorrt

    class Log:
        def take(self):
            return ["Cuda Runtime (out of memory)"], []

    monkeypatch.setattr(tensorrt, "process_logger", lambda trt: Log())


def test_memory_that_runs_out_during_a_build_names_shape_and_remedy():
    found = _failure(
        ["NvMapMemAllocInternalTagged: 1075072515 error 12", "more"],
        "denoise.onnx",
        toy_manifest().graphs,
        BuildSettings(),
    )
    assert "out of device memory while building denoise.onnx" in found
    assert "denoise (rows 4, context 8); workspace 512 MiB" in found
    assert "smaller --block or --context" in found
    assert "\n" not in found


def test_ctrl_c_during_a_build_ends_the_command_and_leaves_no_plan(toy, board, monkeypatch):
    def interrupted(*args, **keys):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal came late")

    monkeypatch.setattr(tensorrt_plans, "build_plan", interrupted)
    closed = []
    monkeypatch.setattr(board.device, "close", lambda: closed.append(True))
    result = run(toy, "abc")
    assert closed
    assert result.exit_code in (1, 130)
    assert result.stdout == ""
    assert plans() == []


def test_a_kernel_cache_that_cannot_be_written_costs_time_only(toy, tmp_path, monkeypatch):
    from dlm_edge.runtime.gpu import compile as kernels

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernels, "write_beside", full)
    for _ in range(2):
        image = kernels.compile_cached(
            kernels.OPS / "cuda/copy.cu", "12.6", (8, 7), lambda text, headers: b"image"
        )
        assert image == b"image"


def test_kernels_that_do_not_compile_are_told_before_minutes_of_building(toy, board, monkeypatch):
    def refuses(source, names):
        raise DeviceError(f"NVRTC cannot compile {source.name}")

    monkeypatch.setattr(board.device, "kernels", refuses)
    assert "NVRTC cannot compile" in line(toy, "abc")
    assert board.trt.num_built == 0


def test_a_full_disk_is_told_before_minutes_of_building(toy, board, monkeypatch):
    monkeypatch.setattr(plan_cache, "free_bytes", lambda folder: 1)
    assert "a plan needs about" in line(toy, "abc")
    assert board.trt.num_built == 0


def test_scratch_memory_is_part_of_what_is_said_to_be_needed(toy, monkeypatch):
    monkeypatch.setattr(ICudaEngine, "device_memory_size_v2", 5 << 20)
    make_board(monkeypatch, capacity=1 << 20)
    found = line(toy, "abc")
    assert "scratch 5.0), 1.0 are free" in found


def test_a_shape_that_fits_beside_the_scratch_memory_is_named(toy, monkeypatch):
    """Though by then the scratch memory and some buffers are taken already."""
    small = sum(buffer_bytes(toy_manifest().graphs[:1]).values())
    board = make_board(monkeypatch, capacity=SCRATCH_BYTES + small)
    assert "denoise (rows 4, context 4) alone would fit" in line(toy, "abc")
    board.device.capacity, board.device._allocated = SCRATCH_BYTES + small - 1, 0
    assert "no shape of the bundle fits alone" in line(toy, "abc")


def test_a_build_is_given_the_kernel_times_of_the_one_before(toy, board, monkeypatch):
    given = []
    build = tensorrt_plans.build_plan

    def telling(*arguments, timing_cache, **rest):
        given.append(timing_cache)
        return build(*arguments, **rest)

    monkeypatch.setattr(tensorrt_plans, "build_plan", telling)
    text(toy, "abc")
    CliRunner().invoke(main, [toy, "--rebuild"])
    assert given == [b"", b"times"]


@pytest.mark.parametrize(
    "other",
    [{"name": "NX"}, {"compute_capability": "8.6"}, {"driver_version": 1}, {"power_mode": "0001"}],
)
def test_a_plan_of_another_gpu_driver_or_power_mode_is_another_plan(toy, board, monkeypatch, other):
    text(toy, "abc")
    gpu = replace(stand_ins.GPU, **other)
    monkeypatch.setattr(tensorrt_open, "read_gpu", lambda: gpu)
    text(toy, "abc")
    assert board.trt.num_built == 2
    assert len(plans()) == 2
