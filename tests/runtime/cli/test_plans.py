import json
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.cli import plans as cli_plans
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.engines.plan_cache import NewPlan, PlanCache
from dlm_edge.runtime.engines.tensorrt_build import BuildSettings, import_tensorrt
from dlm_edge.runtime.engines.tensorrt_plans import graph_files, plan_key
from dlm_edge.runtime.errors import DlmError, EngineError
from dlm_edge.runtime.gpu.facts import GpuFacts
from emulation.board import make_board
from toy_bundle import write_toy

GPU = GpuFacts(name="Orin", compute_capability="8.7", driver_version=12060, power_mode="")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return str(write_toy(tmp_path))


@pytest.fixture
def no_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)


FOUND = ModuleType("tensorrt")
FOUND.__version__ = "10.3.0.30"  # type: ignore[attr-defined]


def store_plan(toy):
    """Puts a plan into the cache as a build would."""
    bundle = open_bundle(toy)
    (file,) = graph_files(bundle)
    key = plan_key(FOUND, bundle, file, "fp32", GPU, BuildSettings())
    PlanCache().obtain(key, lambda: NewPlan(data=memoryview(b"x" * 9000), facts={"bundle": "toy"}))


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def refused(*arguments, code=1):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("options", [["--build"], ["--rebuild"], ["--engine", "tensorrt", "a"]])
def test_without_tensorrt_one_line_says_where_it_comes_from(no_tensorrt, toy, options):
    line = refused(toy, *options)
    assert "python3-libnvinfer" in line
    assert "--engine onnxruntime runs on the CPU" in line


def test_a_tensorrt_that_is_too_old_is_refused_by_version(monkeypatch, toy):
    class Old:
        __version__ = "8.6.2"

    monkeypatch.setitem(sys.modules, "tensorrt", Old)
    assert "10.3 or newer is needed, found 8.6.2" in refused(toy, "--build")


def test_with_tensorrt_but_without_a_gpu_one_line_says_so(monkeypatch, toy):
    monkeypatch.setitem(sys.modules, "tensorrt", FOUND)
    if (error := _driver_error()) is None:
        pytest.skip("this machine has a GPU")
    assert refused(toy, "--build").endswith(error)
    assert refused(toy, "--engine", "tensorrt", "prompt").endswith(error)


def _driver_error():
    try:
        cli_plans.read_gpu()
    except DlmError as error:
        return str(error)
    return None


def test_tensorrt_of_a_supported_version_is_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", FOUND)
    assert import_tensorrt() is FOUND
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="needs the Python package tensorrt"):
        import_tensorrt()


def test_the_list_of_an_empty_cache_is_empty(toy):
    result = run("--plans")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "0 plans in" in result.stderr
    assert json.loads(run("--plans", "--json").stdout)["plans"] == []


def test_the_list_names_bundle_gpu_and_version(toy):
    store_plan(toy)
    text = run("--plans").stdout
    assert "toy" in text
    assert "tensorrt 10.3.0.30, Orin" in text
    (row,) = json.loads(run(toy, "--plans", "--json").stdout)["plans"]
    assert row["bundle_sha256"] == open_bundle(toy).sha256
    assert row["precision"] == "fp32"


def test_the_list_of_a_bundle_leaves_out_the_plans_of_others(toy, tmp_path):
    store_plan(toy)
    other = str(write_toy(tmp_path, "other.dlm", max_position=11))
    store_plan(other)
    (row,) = json.loads(run(other, "--plans", "--json").stdout)["plans"]
    assert row["bundle_sha256"] == open_bundle(other).sha256
    assert len(json.loads(run("--plans", "--json").stdout)["plans"]) == 2


def test_weak_types_that_are_asked_for_are_built_and_are_another_plan(toy, monkeypatch):
    board = make_board(monkeypatch)
    for options in ((), ("--weak-types",), ("--weak-types",)):
        assert run(toy, "--build", *options).exit_code == 0
    assert board.trt.num_built == 2
    asked = [entry.header["key"]["options"]["weakly_typed"] for entry in PlanCache().entries()]
    assert sorted(asked) == [False, True]


def test_a_damaged_plan_is_listed_as_damaged(toy):
    PlanCache()
    (PlanCache().folder / "foreign.plan").write_bytes(b"nothing")
    assert "damaged" in run("--plans").stdout


def test_clearing_a_bundle_leaves_the_plans_of_others(toy, tmp_path):
    store_plan(toy)
    other = str(write_toy(tmp_path, "other.dlm", max_position=11))
    store_plan(other)
    assert json.loads(run(toy, "--clear-plans", "--json").stdout)["removed"] == 1
    assert len(json.loads(run("--plans", "--json").stdout)["plans"]) == 1
    assert json.loads(run("--clear-plans", "--json").stdout)["removed"] == 1
    assert "removed 0 plans" in run("--clear-plans").stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--build", "--rebuild"], "--build contradicts --rebuild"),
        (["--plans", "--info"], "--info contradicts --plans"),
        (["--build", "prompt"], "--build contradicts PROMPT"),
        (["--clear-plans", "--temperature", "0"], "--clear-plans contradicts --temperature"),
        (["--weak-types", "prompt"], "--weak-types has no effect without --build, --rebuild or"),
    ],
)
def test_contradictions_are_one_line(toy, options, reason):
    assert reason in refused(toy, *options, code=2)


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass
