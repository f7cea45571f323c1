"""The report that proves a board: on the CPU, on a stand-in for a board, and on faulty ones."""

import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from dlm_edge.export.checks.golden import golden_vectors
from dlm_edge.runtime import generate, pipeline, text_generation
from dlm_edge.runtime.bundle.bundle import open_bundle, write_bundle
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.engines import open_engines, tensorrt_open
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.measure import board_report
from dlm_edge.runtime.measure.machine import machine_facts
from dlm_edge.runtime.ops.core import KernelCheck
from dlm_edge.runtime.ops.primitives import check_kernels
from dlm_edge.runtime.ops.unmask.compare import CHECKS
from dlm_edge.train.families.graphs import mask_noise
from emulation.board import make_board
from emulation.probes import copy_kernels
from fake_board import make_board as make_files
from toy_bundle import VOCAB, toy_manifest, toy_members, write_toy


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A toy with golden vectors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(board_report, "SECONDS_PER_SHAPE", 0.0)
    plain = open_bundle(write_toy(tmp_path, "plain.dlm"))
    ids = np.random.default_rng(0).integers(2, VOCAB, 12).astype(np.int32)
    golden = golden_vectors(
        plain.manifest,
        open_engines(plain, "onnxruntime", 1),
        ids,
        {"denoise": mask_noise(1)},
        seed=0,
    )
    path = tmp_path / "toy.dlm"
    write_bundle(path, toy_manifest(), {**toy_members(tmp_path / "more"), "golden.json": golden})
    return path


def report(bundle, *arguments, code=0):
    target = bundle.parent / "report.json"
    result = CliRunner().invoke(main, [str(bundle), "--board-report", str(target), *arguments])
    assert result.exit_code == code, result.stderr
    return json.loads(target.read_text("utf-8")), result


def set_clock(monkeypatch, clock):
    clocks = SimpleNamespace(perf_counter=clock, strftime=time.strftime, gmtime=time.gmtime)
    for module in (board_report, generate, pipeline, text_generation):
        monkeypatch.setattr(module, "time", clocks)


def test_on_the_cpu_kernels_are_said_not_to_have_run(bundle, monkeypatch):
    looks = itertools.count()
    set_clock(monkeypatch, lambda: next(looks) / 1024)
    found, result = report(bundle, "--engine", "onnxruntime")
    assert found["ok"]
    assert found["kernels"] == "not run: no GPU"
    assert found["golden"]["ok"]
    assert found["engine"]["name"] == "onnxruntime-cpu"
    assert found["speed"]["tokens"] > 0
    assert found["speed"]["tokens_per_s"] > 0
    assert [(row["dims"]["rows"], row["dims"]["context"]) for row in found["runs"]] == [
        (4, 4),
        (4, 8),
    ]
    # Eight calls between two looks at this clock.
    assert {row["run_ms"] for row in found["runs"]} == {round(1e3 / 1024 / 8, 4)}
    assert {row["sample_ms"] for row in found["runs"]} == {round(1e3 / 1024 / 8, 4)}
    assert found["memory"]["peak_rss_mib"] > 0
    assert found["versions"]["numpy"] == np.__version__
    assert found["bundle"]["sha256"] == open_bundle(bundle).sha256
    assert "not run: no GPU" in result.stdout


def test_texts_that_take_less_than_a_tick_of_the_clock_are_no_fault(bundle, monkeypatch):
    set_clock(monkeypatch, lambda: 7.0)
    found, _ = report(bundle, "--engine", "onnxruntime")
    assert found["ok"]
    assert found["speed"]["tokens"] > 0
    assert found["speed"]["tokens_per_s"] == 0.0


def test_on_a_board_every_kernel_is_compared(bundle, monkeypatch):
    board = make_board(monkeypatch)
    found, result = report(bundle, "--engine", "tensorrt")
    assert found["ok"], found
    assert {item["kernel"] for item in found["kernels"]} == {
        "sample_float32", "sample_float16", "begin_block", "commit", "append_rows",
        "transit_float32", "transit_float16", "draft_float32", "draft_float16",
        "guide_float32", "guide_float16", "move_latents",
    }  # fmt: skip
    assert all(item["ok"] and item["rows"] for item in found["kernels"])
    assert found["golden"]["engine"] == "tensorrt"
    assert found["speed"]["steps"]["replayed"] > 0
    assert found["memory"]["gpu_total_mib"] == board.device.capacity / 2**20
    assert "kernels  agree: 12" in result.stdout


def test_a_kernel_that_computes_something_else_is_named(bundle, monkeypatch, tmp_path):
    from dlm_edge.runtime.gpu.compile import OPS
    from dlm_edge.runtime.ops.cuda.ops import CudaOps

    source = copy_kernels(OPS, tmp_path) / "unmask" / "commit.cu"
    text = source.read_text("utf-8")
    wrong = text.replace("theirs > own)", "theirs >= own)")
    assert wrong != text
    source.write_text(wrong, "utf-8")
    board = make_board(monkeypatch)
    ops = CudaOps(board.device, sources=source.parents[1])
    found = {item["kernel"]: item for item in check_kernels(ops)}
    assert not found["commit"]["ok"]
    assert found["commit"]["faults"]
    assert found["append_rows"]["ok"]


def test_a_machine_that_cannot_open_the_engine_still_gets_a_report(bundle):
    found, result = report(bundle, "--engine", "tensorrt", code=1)
    assert not found["ok"]
    assert "TensorRT" in found["engine"]["error"] or "tensorrt" in found["engine"]["error"]
    assert found["machine"]["python"]
    assert "report.json has the details" in result.stderr


def test_what_nobody_foresaw_stands_in_the_report_with_its_place(bundle, monkeypatch):
    make_board(monkeypatch)

    def unforeseen(*arguments, **keys):
        raise TypeError("incompatible function arguments:\n  1. (self)")

    monkeypatch.setattr(board_report, "run_times", unforeseen)
    monkeypatch.setitem(CHECKS, "begin_block", unforeseen)
    found, result = report(bundle, "--engine", "tensorrt", code=1)
    assert found["runs"]["error"] == "TypeError: incompatible function arguments: 1. (self)"
    assert found["runs"]["where"][-1].startswith("test_board_report.py:")
    assert found["runs"]["where"][-1].endswith(" unforeseen")
    (begin,) = (item for item in found["kernels"] if item["kernel"] == "begin_block")
    assert begin["faults"][0].startswith("TypeError: incompatible")
    assert found["speed"]["tokens"] > 0
    assert "Traceback" not in result.output
    monkeypatch.setattr(tensorrt_open, "make_device", unforeseen)
    found, _ = report(bundle, "--engine", "tensorrt", code=1)
    assert found["engine"]["error"].startswith("TypeError: ")
    assert found["machine"]["python"]


def test_a_gpu_that_breaks_down_gets_a_report_as_well(bundle, monkeypatch):
    board = make_board(monkeypatch)

    def broken(*arguments):
        raise DeviceError("work on the GPU failed: an illegal memory access was encountered")

    def breaks(pipeline):
        monkeypatch.setattr(board.device, "synchronize", broken)
        broken()

    monkeypatch.setattr(board_report, "kernels", breaks)
    found, _ = report(bundle, "--engine", "tensorrt", code=1)
    assert found["golden"]["ok"]
    assert "illegal memory access" in found["kernels"]["error"]
    assert "illegal memory access" in found["runs"]["error"]


def test_a_board_whose_tensorrt_fails_proves_nothing_by_its_cpu(bundle, monkeypatch):
    board = make_board(monkeypatch)
    board.trt.num_refusals = 9
    found, result = report(bundle, code=1)
    assert not found["ok"]
    assert found["engine"]["name"] == "onnxruntime-cpu"
    assert found["golden"]["ok"]
    assert "TensorRT fails" in result.stdout


def test_a_bundle_without_golden_vectors_fails_in_that_part_only(tmp_path, bundle):
    found, _ = report(tmp_path / "plain.dlm", "--engine", "onnxruntime", code=1)
    assert "golden" in found["golden"]["error"]
    assert found["speed"]["tokens"] > 0


def test_a_report_that_cannot_be_written_is_one_line(bundle):
    target = bundle.parent / "missing" / "report.json"
    result = CliRunner().invoke(
        main, [str(bundle), "--board-report", str(target), "--engine", "onnxruntime"]
    )
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "choose another FILE" in result.stderr


def test_a_check_of_nothing_is_not_ok():
    assert not KernelCheck(kernel="x").ok
    assert KernelCheck(kernel="x", cases=1, rows=1000, ties=3).ok
    assert not KernelCheck(kernel="x", cases=1, rows=1000, ties=4).ok


def test_a_boards_name_and_release_are_read_from_their_files(tmp_path):
    facts = machine_facts(make_files(tmp_path / "board"))
    assert facts["board"].startswith("NVIDIA Jetson Orin Nano")
    assert facts["l4t"] == "36.4.7"
    assert facts["memory_mib"] == 7620
    assert machine_facts(tmp_path / "no")["board"] is None
