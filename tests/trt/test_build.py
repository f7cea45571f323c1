"""Our builder code, executed by TensorRT-RTX on this CPU."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.cli import plans as cli_plans
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.engines import tensorrt_build
from dlm_edge.runtime.engines.plan_cache import PlanCache
from dlm_edge.runtime.engines.tensorrt_build import (
    BuildSettings,
    _network_flags,
    _set_options,
    _set_profiles,
    build_plan,
)
from dlm_edge.runtime.engines.tensorrt_log import process_logger
from dlm_edge.runtime.engines.tensorrt_plans import Plan, graph_files, plan_for
from dlm_edge.runtime.errors import ConfigError, EngineError
from dlm_edge.runtime.gpu.facts import GpuFacts
from onnx import TensorProto, helper, numpy_helper
from toy_bundle import toy_spec, write_toy

pytestmark = [
    pytest.mark.trt,
    # Timing caches are a full TensorRT's.
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX"),
]
GPU = GpuFacts(name="Orin", compute_capability="8.7", driver_version=12060, power_mode="")
SETTINGS = BuildSettings(workspace_mib=64, optimization_level=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return PlanCache()


def test_a_bundles_plan_is_built_with_one_profile_per_shape_and_then_cached(
    trt, configure, bundle, cache
):
    (file,) = graph_files(bundle)
    seen = []
    plan = plan_for(
        trt,
        bundle,
        file,
        GPU,
        cache,
        SETTINGS,
        configure=configure,
        report=lambda fraction, phase: seen.append((fraction, phase)),
    )
    assert plan.facts is not None
    assert plan.facts["profiles"] == [s.label for s in plan.specs]
    assert plan.facts["seconds"] > 0
    assert plan.facts["peak_rss_mib"] > 0
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)
    assert 0 < seen[-1][0] <= 1
    again = plan_for(trt, bundle, file, GPU, cache, SETTINGS)
    assert again.facts is None
    assert again.data == plan.data


def test_other_settings_are_another_plan(trt, bundle, cache, configure):
    (file,) = graph_files(bundle)
    plan_for(trt, bundle, file, GPU, cache, SETTINGS, configure=configure)
    other = replace(SETTINGS, workspace_mib=32)
    assert plan_for(trt, bundle, file, GPU, cache, other, configure=configure).facts is not None
    assert len(cache.entries()) == 2


def test_a_first_build_keeps_kernel_times_and_the_next_is_given_them(trt, configure, bundle, cache):
    (file,) = graph_files(bundle)
    plan = plan_for(trt, bundle, file, GPU, cache, SETTINGS, configure=configure)
    kept = cache.timings(plan.key)
    assert kept
    # TensorRT-RTX says that it reads none, its own included, and builds all the same.
    for known in (kept, b"spoilt"):
        again = build_plan(
            trt, bundle.member(file), [toy_spec()], SETTINGS, configure=configure,
            timing_cache=known,
        )  # fmt: skip
        assert again.timing_cache


def test_what_was_asked_of_a_build_reaches_tensorrt(trt):
    builder = trt.Builder(process_logger(trt))
    config = builder.create_builder_config()
    settings = BuildSettings(workspace_mib=48, optimization_level=2)
    _set_options(trt, config, [toy_spec()], settings)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 48 << 20
    assert config.builder_optimization_level == 2
    assert config.max_aux_streams == 0
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_types_are_strong_unless_weak_ones_are_asked_for(trt):
    strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert _network_flags(trt, SETTINGS) == strong
    assert _network_flags(trt, replace(SETTINGS, weakly_typed=True)) == 0


def test_a_build_that_is_told_to_stop_is_waited_for(monkeypatch):
    """It would call back into an interpreter that is gone."""
    trt = SimpleNamespace(IProgressMonitor=object)
    ended = []

    def build_until_stopped(trt, path, specs, settings, timings, configure, monitor):
        monitor.phase_start("build", None, 1000)
        for step in range(1000):  # 10 s at most
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            if not monitor.step_complete("build", step):
                time.sleep(0.3)
                ended.append(step)
                raise EngineError("stopped")
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(tensorrt_build, "_build", build_until_stopped)
    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, Path("none"), [], SETTINGS)
    assert ended
    assert ended[0] < 500


def one_node(folder: Path, node, inputs, output, constants=(), name="bad.onnx") -> Path:
    """Writes a graph of one node without the checks that would refuse it."""
    graph = helper.make_graph(
        [node],
        "bad",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(array, n) for n, array in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / name
    onnx.save(model, path)
    return path


def test_two_dtypes_in_one_sum_are_refused_naming_the_node(trt, configure, tmp_path):
    path = one_node(
        tmp_path,
        helper.make_node("Add", ["a", "b"], ["c"], name="sum"),
        [("a", TensorProto.FLOAT, [4]), ("b", TensorProto.FLOAT16, [4])],
        ("c", TensorProto.FLOAT, [4]),
    )
    with pytest.raises(EngineError) as caught:
        build_plan(trt, path, [toy_spec()], SETTINGS, configure=configure)
    message = str(caught.value)
    assert "\n" not in message
    assert "bad.onnx" in message
    assert "sum" in message


def test_a_zero_point_that_is_not_zero_is_refused(trt, configure, tmp_path):
    path = one_node(
        tmp_path,
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["c"], name="quantise"),
        [("a", TensorProto.FLOAT, [4])],
        ("c", TensorProto.INT8, [4]),
        [("s", np.array(0.1, np.float32)), ("z", np.array(3, np.int8))],
    )
    with pytest.raises(EngineError, match=r"refuses node quantise \(QuantizeLinear\).*zero"):
        build_plan(trt, path, [toy_spec()], SETTINGS, configure=configure)


def test_an_operator_nobody_has_is_refused_by_name(trt, configure, tmp_path):
    path = one_node(
        tmp_path,
        helper.make_node("Multinomial", ["a"], ["c"], name="draw", sample_size=1),
        [("a", TensorProto.FLOAT, [1, 4])],
        ("c", TensorProto.INT32, [1, 1]),
    )
    with pytest.raises(EngineError, match="Multinomial"):
        build_plan(trt, path, [toy_spec()], SETTINGS, configure=configure)


@pytest.mark.parametrize("content", [b"", b"no onnx at all", None])
def test_a_file_that_is_no_graph_is_one_line(trt, configure, tmp_path, content):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"broken\.onnx") as caught:
        build_plan(trt, path, [toy_spec()], SETTINGS, configure=configure)
    assert "\n" not in str(caught.value)


def test_a_manifest_with_other_tensors_is_refused(trt, configure, bundle):
    (file,) = graph_files(bundle)
    spec = replace(toy_spec(), inputs=toy_spec().inputs[:2])
    with pytest.raises(EngineError, match="has the inputs ids, kv, start, the manifest wants"):
        build_plan(trt, bundle.member(file), [spec], SETTINGS, configure=configure)


def test_a_shape_the_graph_cannot_take_is_refused(trt, configure, bundle):
    (file,) = graph_files(bundle)
    spec = toy_spec()
    kv = replace(spec.inputs[2], shape=(4, 1, 1, 2, 1, 9))
    spec = replace(spec, inputs=(*spec.inputs[:2], kv))
    with pytest.raises(EngineError):
        build_plan(trt, bundle.member(file), [spec], SETTINGS, configure=configure)


def test_weak_typing_is_refused_where_tensorrt_has_none(trt, configure, bundle):
    (file,) = graph_files(bundle)
    weak = replace(SETTINGS, weakly_typed=True)
    spec = replace(toy_spec(), precision="fp16")
    with pytest.raises(EngineError, match="no weak typing: leave out --weak-types"):
        build_plan(trt, bundle.member(file), [spec], weak, configure=configure)


def test_what_the_builder_says_stands_in_the_error(trt, bundle):
    def this_gpu(config):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)

    (file,) = graph_files(bundle)
    with pytest.raises(EngineError, match=r"builds no plan from denoise\.onnx: .*(driver|device)"):
        build_plan(trt, bundle.member(file), [toy_spec()], SETTINGS, configure=this_gpu)


def test_ctrl_c_stops_a_build_and_leaves_no_plan(trt, configure, bundle, cache, request):
    (file,) = graph_files(bundle)
    sent, heard = threading.Event(), threading.Event()

    def hear(number, frame):
        heard.set()
        raise KeyboardInterrupt

    def interrupt(fraction, phase):
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)
            assert heard.wait(600)  # by the thread that waits for the build

    before = signal.signal(signal.SIGINT, hear)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):
        plan_for(trt, bundle, file, GPU, cache, SETTINGS, configure=configure, report=interrupt)
    assert sent.is_set()
    for thread in threading.enumerate():
        if thread.name == "tensorrt-build":  # it has no more to do than to end
            thread.join(600)
            assert not thread.is_alive()
    assert cache.entries() == []
    assert plan_for(trt, bundle, file, GPU, cache, SETTINGS, configure=configure).facts is not None


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="workspace_mib"):
        BuildSettings(workspace_mib=0)
    with pytest.raises(ConfigError, match="optimization_level"):
        BuildSettings(optimization_level=6)


def test_the_command_builds_lists_and_finds_its_plan(trt, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Left to itself, TensorRT-RTX builds for every GPU it knows.
    monkeypatch.setattr(cli_plans, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(cli_plans, "read_gpu", lambda: GPU)
    toy = str(write_toy(tmp_path))
    runner = CliRunner()
    built = json.loads(runner.invoke(main, [toy, "--build", "--json"]).stdout)
    assert built["built"]
    assert built["seconds"] > 0
    assert "in the cache" in runner.invoke(main, [toy, "--build"]).stdout
    assert "built in" in runner.invoke(main, [toy, "--rebuild"]).stdout
    (row,) = json.loads(runner.invoke(main, ["--plans", "--json"]).stdout)["plans"]
    assert row["bundle"] == "toy.dlm"
    assert row["gpu"] == "Orin"


class Recorder:
    """Stands for TensorRT's builder and its config: keeps what each profile was given."""

    def __init__(self):
        self.profiles = []

    def create_optimization_profile(self):
        return SimpleNamespace(shapes={}, set_shape=self.set_shape)

    def set_shape(self, name, *sizes):
        assert sizes[0] == sizes[1] == sizes[2]

    def add_optimization_profile(self, profile):
        self.profiles.append(getattr(profile, "extra_memory_target", None))
        return len(self.profiles) - 1


def test_only_the_shape_of_most_work_may_lay_out_the_weights(bundle):
    ((_, specs),) = graph_files(bundle).items()
    assert len(specs) > 1
    assert (specs[0].rows, specs[0].context) == max((s.rows, s.context) for s in specs)
    recorder = Recorder()
    _set_profiles(recorder, recorder, specs)
    assert recorder.profiles == [None] + [0.0] * (len(specs) - 1)


def test_a_plan_that_holds_its_weights_twice_says_so(bundle):
    def of(mib, weights):
        data = memoryview(np.empty(mib << 20, np.uint8))
        return Plan(key=None, specs=(), data=data, facts={"weights_mib": weights})

    assert of(120, 50.0).surplus is None
    told = of(140, 50.0).surplus
    assert told is not None
    assert "140 MiB for 50 MiB of weights" in told
    assert Plan(key=None, specs=(), data=memoryview(b""), facts=None).surplus is None
