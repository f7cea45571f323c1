"""The execution side, on a stand-in for TensorRT's runtime that reads the addresses it was given.

The stand-in runs the graph with ONNX Runtime on host memory, so what is tested is ours: which
profile, shapes, addresses and scratch memory reach a context, and what a set does with its plans.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from dlm_edge.runtime.bundle import open_bundle
from dlm_edge.runtime.engines import tensorrt as backend
from dlm_edge.runtime.engines import tensorrt_plans
from dlm_edge.runtime.engines.gpu import Gpu
from dlm_edge.runtime.engines.onnxruntime import OnnxRuntimeEngines
from dlm_edge.runtime.engines.tensorrt import TensorRtEngines
from dlm_edge.runtime.engines.tensorrt_build import BuiltPlan
from dlm_edge.runtime.errors import EngineError
from toy_bundle import BLOCK, CACHE, CONTEXTS, VOCAB, write_toy

GPU = Gpu(name="Orin", compute_capability="8.7", driver_version=12060, power_mode="")
STREAM = 77


@dataclass(frozen=True)
class Array:
    pointer: int
    shape: tuple[int, ...]
    dtype: Any
    owner: Any

    @property
    def host(self):
        count = int(np.prod(self.shape))
        kind = np.dtype(self.dtype)
        raw = (ctypes.c_char * (count * kind.itemsize)).from_address(self.pointer)
        return np.frombuffer(raw, kind).reshape(self.shape)


class HostMemory:
    stream = STREAM

    def empty(self, shape, dtype):
        memory = np.full(shape, 99, dtype)
        return Array(memory.ctypes.data, tuple(shape), dtype, memory)

    def zero(self, target):
        target.owner[...] = 0


class Context:
    def __init__(self, path, bundle):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.bundle, self.addresses, self.shapes, self.memory = bundle, {}, {}, None

    def set_optimization_profile_async(self, index, stream):
        assert stream == STREAM
        self.spec = self.bundle.manifest.graphs[index]
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def infer_shapes(self):
        wanted = {tensor.name: tensor.shape for tensor in self.spec.inputs}
        return [name for name in wanted if self.shapes.get(name) != wanted[name]]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_device_memory(self, address, size):
        self.memory = (address, size)

    def execute_async_v3(self, stream):
        assert stream == STREAM
        assert self.memory is not None

        def at(tensor):
            return Array(self.addresses[tensor.name], tensor.shape, tensor.dtype, None).host

        found = self.session.run(
            [t.name for t in self.spec.outputs], {t.name: at(t) for t in self.spec.inputs}
        )
        for tensor, value in zip(self.spec.outputs, found, strict=True):
            at(tensor)[...] = value
        return True


class Engine:
    device_memory_size_v2 = 640

    def __init__(self, bundle):
        self.bundle = bundle
        self.contexts = []

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        path = str(self.bundle.member("graphs/denoise.onnx"))
        self.contexts.append(Context(path, self.bundle))
        return self.contexts[-1]


class Tensorrt:
    """The module; `refusals` plans are refused before one is taken."""

    __name__, __version__ = "tensorrt", "10.3.0"

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = "user managed"

    class ILogger:
        ERROR = 1
        WARNING = 2

    def __init__(self, bundle, refusals=0):
        self.engine, self.refusals = Engine(bundle), refusals
        self.loaded = []

    def Runtime(self, logger):  # noqa: N802
        return self

    def deserialize_cuda_engine(self, data):
        self.loaded.append(bytes(data))
        self.refusals -= 1
        return None if self.refusals >= 0 else self.engine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def builds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def build(*args, **keys):
        made.append(b"plan %d" % len(made) * 9)
        return BuiltPlan(
            data=memoryview(made[-1]),
            seconds=1.0,
            peak_rss_mib=1.0,
            timing_cache=b"",
            warnings=(),
        )

    monkeypatch.setattr(tensorrt_plans, "build_plan", build)
    return made


def make(bundle, **keys):
    trt = Tensorrt(bundle, **keys)
    notes = []
    engines = TensorRtEngines(trt, bundle, HostMemory(), GPU, note=notes.append)
    return engines, trt, notes


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_run_gives_what_onnx_runtime_gives(bundle, builds, context):
    engines, _, _ = make(bundle)
    reference = OnnxRuntimeEngines(bundle, threads=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (1, BLOCK))
    kv = rng.standard_normal((context, *CACHE))
    one, other = (found.engine("denoise", BLOCK, context) for found in (engines, reference))
    one.inputs["ids"].host[...] = other.inputs["ids"][...] = ids
    one.inputs["start"].host[...] = other.inputs["start"][...] = 3
    one.inputs["kv"].host[...] = other.inputs["kv"][...] = kv
    one.run()
    other.run()
    for name, array in other.outputs.items():
        np.testing.assert_array_equal(one.outputs[name].host, array)


def test_buffers_begin_as_zeros_and_stay_where_they_are(bundle, builds):
    engines, _, _ = make(bundle)
    engine = engines.engine("denoise", BLOCK, CONTEXTS[0])
    assert not engine.inputs["kv"].host.any()
    before = {name: array.pointer for name, array in engine.inputs.items()}
    engines.engine("denoise", BLOCK, CONTEXTS[1]).run()
    again = engines.engine("denoise", BLOCK, CONTEXTS[0])
    assert again is engine
    assert {name: array.pointer for name, array in again.inputs.items()} == before


def test_a_smaller_context_is_a_prefix_of_the_larger_one_and_canvases_are_not(bundle, builds):
    engines, _, _ = make(bundle)
    small, large = (engines.engine("denoise", BLOCK, context) for context in CONTEXTS)
    assert small.inputs["kv"].pointer == large.inputs["kv"].pointer
    assert small.inputs["kv"].shape[0] == CONTEXTS[0]
    assert small.inputs["ids"].pointer != large.inputs["ids"].pointer
    assert small.outputs["logits"].pointer == large.outputs["logits"].pointer


def test_each_slot_has_a_cache_of_its_own_and_binds_it(bundle, builds):
    engines, trt, _ = make(bundle)
    engine = engines.engine("denoise", BLOCK, CONTEXTS[0])
    first = engine.inputs["kv"].pointer
    engines.kv_slot(1)
    second = engine.inputs["kv"].pointer
    assert first != second
    assert trt.engine.contexts[0].addresses["kv"] == second
    engines.kv_slot(0)
    assert trt.engine.contexts[0].addresses["kv"] == first


def test_all_contexts_share_one_scratch_memory(bundle, builds):
    engines, trt, _ = make(bundle)
    for context in CONTEXTS:
        engines.engine("denoise", BLOCK, context)
    first, second = (context.memory for context in trt.engine.contexts)
    assert first == second
    assert first[1] == 640


def test_a_plan_is_built_once_for_all_later_sets(bundle, builds):
    make(bundle)
    make(bundle)
    assert len(builds) == 1


def test_a_plan_that_tensorrt_refuses_is_built_again_and_that_is_said(bundle, builds, monkeypatch):
    monkeypatch.setattr(backend, "process_logger", lambda trt: _Log())
    make(bundle)
    _, trt, notes = make(bundle, refusals=1)
    assert len(builds) == 2
    assert trt.loaded == builds
    assert notes == ["TensorRT cannot load the plan (magic tag differs) and builds it again"]
    make(bundle)
    assert len(builds) == 2


def test_a_plan_refused_right_after_its_build_is_an_error(bundle, builds, monkeypatch):
    monkeypatch.setattr(backend, "process_logger", lambda trt: _Log())
    with pytest.raises(EngineError, match="cannot load the plan that it just built: magic tag"):
        make(bundle, refusals=2)


class _Log:
    def take(self):
        return ["magic tag differs"], []


def test_a_shape_the_bundle_lacks_is_refused_by_name(bundle, builds):
    engines, _, _ = make(bundle)
    with pytest.raises(EngineError, match="no graph denoise for block 5 and context 4; it has"):
        engines.engine("denoise", 5, 4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("set_optimization_profile_async", "refuses its profile 0"),
        ("set_input_shape", "refuses the shape of ids"),
        ("set_tensor_address", "refuses the address of logits"),
        ("execute_async_v3", "refuses to run"),
    ],
)
def test_every_call_that_tensorrt_refuses_is_one_line(bundle, builds, monkeypatch, method, message):
    monkeypatch.setattr(Context, method, lambda *args: False)
    engines, _, _ = make(bundle)
    monkeypatch.setattr(Context, "infer_shapes", lambda self: [])
    with pytest.raises(EngineError, match=message) as caught:
        engines.engine("denoise", BLOCK, CONTEXTS[0]).run()
    assert "--engine onnxruntime" in str(caught.value)
