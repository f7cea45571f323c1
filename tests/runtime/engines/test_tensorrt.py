"""The execution side, on a stand-in for TensorRT's runtime that reads the addresses it was given.

The stand-in runs the graph with ONNX Runtime in the emulated device's memory, so what is tested is
ours: which profile, shapes, addresses and scratch memory reach a context, and what a set does with
its plans.
"""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from dlm_edge.runtime.bundle.bundle import open_bundle, write_bundle
from dlm_edge.runtime.engines import tensorrt as backend
from dlm_edge.runtime.engines import tensorrt_plans
from dlm_edge.runtime.engines.device_buffers import buffer_bytes
from dlm_edge.runtime.engines.onnxruntime import OnnxRuntimeEngines
from dlm_edge.runtime.engines.tensorrt import TensorRtEngines
from dlm_edge.runtime.engines.tensorrt_log import process_logger
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from emulation.board import GPU
from emulation.device import EmulatedDevice
from emulation.tensorrt import FakeTensorrt, ICudaEngine, IExecutionContext, build_plan
from toy_bundle import BLOCK, CACHE, CONTEXTS, VOCAB, toy_manifest, toy_members, toy_spec, write_toy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def trt(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tensorrt_plans, "build_plan", build_plan)
    return FakeTensorrt(EmulatedDevice())


def make(bundle, trt, num_refusals=0):
    trt.num_refusals = num_refusals
    notes = []
    return TensorRtEngines(trt, bundle, trt.device, GPU, note=notes.append), notes


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_run_gives_what_onnx_runtime_gives(bundle, trt, context):
    engines, _ = make(bundle, trt)
    reference = OnnxRuntimeEngines(bundle, threads=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (1, BLOCK))
    kv = rng.standard_normal((context, *CACHE))
    one, other = (found.engine(toy_spec(context=context)) for found in (engines, reference))
    for name, value in (("ids", ids), ("start", [3]), ("kv", kv)):
        trt.device.upload(one.inputs[name], np.asarray(value))
        other.inputs[name][...] = value
    one.run()
    other.run()
    for name, array in other.outputs.items():
        np.testing.assert_array_equal(trt.device.download(one.outputs[name]), array)


def test_buffers_begin_as_zeros_and_stay_where_they_are(bundle, trt):
    engines, _ = make(bundle, trt)
    engine = engines.engine(toy_spec(context=CONTEXTS[0]))
    assert not trt.device.download(engine.inputs["kv"]).any()
    before = {name: array.pointer for name, array in engine.inputs.items()}
    engines.engine(toy_spec(context=CONTEXTS[1])).run()
    again = engines.engine(toy_spec(context=CONTEXTS[0]))
    assert again is engine
    assert {name: array.pointer for name, array in again.inputs.items()} == before


def test_a_smaller_context_is_a_prefix_of_the_larger_one_and_canvases_are_not(bundle, trt):
    engines, _ = make(bundle, trt)
    small, large = (engines.engine(toy_spec(context=context)) for context in CONTEXTS)
    assert small.inputs["kv"].pointer == large.inputs["kv"].pointer
    assert small.inputs["kv"].shape[0] == CONTEXTS[0]
    assert small.inputs["ids"].pointer != large.inputs["ids"].pointer
    assert small.outputs["logits"].pointer == large.outputs["logits"].pointer


def test_scratch_memory_is_that_of_the_plan_that_wants_most(trt, tmp_path, monkeypatch):
    sizes = iter((640, 1280))  # in the order in which they are loaded
    monkeypatch.setattr(ICudaEngine, "device_memory_size_v2", property(lambda self: self.size))
    load = ICudaEngine.__init__

    def make_one(self, *arguments):
        self.size = next(sizes)
        load(self, *arguments)

    monkeypatch.setattr(ICudaEngine, "__init__", make_one)
    members = toy_members(tmp_path)
    member = members["graphs/denoise.onnx"]
    manifest = toy_manifest()
    small, large = manifest.graphs
    graphs = (small, replace(large, file="graphs/second.onnx"))
    write_bundle(tmp_path / "two.dlm", replace(manifest, graphs=graphs),
                 {**members, "graphs/second.onnx": member})  # fmt: skip
    engines, _ = make(open_bundle(tmp_path / "two.dlm"), trt)
    assert engines.account()["scratch"] == 1280
    for context in CONTEXTS:
        engines.engine(toy_spec(context=context)).run()
    assert trt.num_built == 2


def test_closing_a_set_closes_its_device_once(bundle, trt, monkeypatch):
    closed = []
    monkeypatch.setattr(trt.device, "close", lambda: closed.append(True))
    engines, _ = make(bundle, trt)
    engines.close()
    engines.close()
    assert closed == [True]


def test_a_set_says_what_memory_it_holds(bundle, trt):
    engines, _ = make(bundle, trt)
    found = engines.account()
    assert found["weights"] == 9000  # the stand-in's plan
    assert found["scratch"] == ICudaEngine.device_memory_size_v2
    specs = bundle.manifest.graphs
    kv = max(np.prod(spec.tensor("kv").shape) for spec in specs)
    assert found["kv"] == 4 * kv
    assert found["logits"] == 4 * BLOCK * VOCAB
    assert found["inputs"] == len(specs) * 4 * (BLOCK + 1)
    assert {name: found[name] for name in ("kv", "logits", "kv_new", "inputs")} == buffer_bytes(
        specs
    )


def test_no_captured_step_outlives_the_contexts_it_runs(bundle, trt):
    device = ReplayingDevice(trt.device)
    engines = TensorRtEngines(trt, bundle, device, GPU)
    for change in (engines.start_layers, engines.take_layers, engines.close):
        engine = engines.engine(toy_spec(context=CONTEXTS[0]))
        for _ in range(3):
            engine.run()
            device.flush(repeats=True)
        change()
        assert not device._steps
        assert device.captures == (change != engines.start_layers)


def test_an_engine_that_outlives_its_set_holds_nothing_and_runs_no_more(bundle, trt):
    engines, _ = make(bundle, trt)
    engine = engines.engine(toy_spec(context=CONTEXTS[0]))
    context = weakref.ref(trt.engines[0].contexts.pop())
    engines.close()
    assert context() is None
    assert engine.inputs == engine.outputs == {}
    with pytest.raises(EngineError, match="refuses to run"):
        engine.run()


def test_all_contexts_share_one_scratch_memory(bundle, trt):
    engines, _ = make(bundle, trt)
    for context in CONTEXTS:
        engines.engine(toy_spec(context=context))
    first, second = (context._memory for context in trt.engines[0].contexts)
    assert first == second


def test_a_plan_is_built_once_for_all_later_sets(bundle, trt):
    make(bundle, trt)
    make(bundle, trt)
    assert trt.num_built == 1


def test_a_plan_that_tensorrt_refuses_is_built_again_and_that_is_said(bundle, trt, monkeypatch):
    monkeypatch.setattr(backend, "process_logger", lambda trt: _Log())
    make(bundle, trt)
    _, notes = make(bundle, trt, num_refusals=1)
    assert trt.num_built == 2
    assert notes == ["TensorRT cannot load the plan (magic tag differs) and builds it again"]
    make(bundle, trt)
    assert trt.num_built == 2


def test_a_plan_refused_right_after_its_build_is_an_error(bundle, trt, monkeypatch):
    monkeypatch.setattr(backend, "process_logger", lambda trt: _Log())
    with pytest.raises(EngineError, match="cannot load the plan that it just built: magic tag"):
        make(bundle, trt, num_refusals=2)


class _Log:
    def take(self):
        return ["magic tag differs"], []

    def log(self, severity, message):
        pass


def test_a_shape_the_bundle_lacks_is_refused_by_name(bundle, trt):
    engines, _ = make(bundle, trt)
    with pytest.raises(EngineError, match=r"no graph denoise \(rows 5, context 4\); it has"):
        engines.engine(toy_spec(5, 4))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("set_optimization_profile_async", "refuses its profile 1"),
        ("set_input_shape", "refuses the shape of ids"),
        ("set_tensor_address", "refuses the address of ids"),
        ("execute_async_v3", "refuses to run"),
    ],
)
def test_every_call_that_tensorrt_refuses_is_one_line(bundle, trt, monkeypatch, method, message):
    engines, _ = make(bundle, trt)

    def refuse(*args):
        process_logger(trt).log(1, f"{method}: not allowed")
        return False

    monkeypatch.setattr(IExecutionContext, method, refuse)
    monkeypatch.setattr(IExecutionContext, "infer_shapes", lambda self: [])
    with pytest.raises(EngineError, match=message) as caught:
        engines.engine(toy_spec(context=CONTEXTS[0])).run()
    assert f"({method}: not allowed): build" in str(caught.value)
    assert "--engine onnxruntime" in str(caught.value)


def test_shapes_that_cannot_be_inferred_are_one_line(bundle, trt, monkeypatch):
    def fails(context):
        raise RuntimeError("infer_shapes error code: -1")

    engines, _ = make(bundle, trt)
    for infer, reason in ((fails, "error code: -1"), (lambda context: ["ids"], "ids")):
        monkeypatch.setattr(IExecutionContext, "infer_shapes", infer)
        with pytest.raises(EngineError, match=rf"refuses its shapes \(.*{reason}\)"):
            engines.engine(toy_spec(context=CONTEXTS[0]))
