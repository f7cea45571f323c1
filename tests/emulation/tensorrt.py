"""A stand-in for TensorRT's runtime: contexts run the graph by ONNX Runtime in a device's memory.

It has the members of the real classes that our code touches and no others (`tests/trt/test_api.py`
compares them with the table), and it punishes what TensorRT would: an unbound tensor, a shape out
of the profile, another stream, missing scratch memory. Runs are enqueued on the emulated device, in
its order, and read the addresses that were bound when they were enqueued.

Plans are what `build_plan` below gives, or a real builder's, whose plans it is told of.
"""

import hashlib
import json

import numpy as np
import onnxruntime
from dlm_edge.runtime.engines.tensorrt_build import BuiltPlan
from dlm_edge.runtime.gpu.device import DeviceArray

SCRATCH_BYTES = 640


def build_plan(trt, onnx_path, specs, settings, *, report=lambda fraction, phase: None, **rest):
    """In place of `tensorrt_build.build_plan`, where no TensorRT is."""
    data = json.dumps({"onnx": str(onnx_path), "shapes": [spec.key for spec in specs]})
    trt.plans[hashlib.sha256(data.encode()).hexdigest()] = (onnx_path, tuple(specs))
    trt.num_built += 1
    report(1.0, "built")
    return BuiltPlan(
        data=memoryview(data.encode().ljust(9000)), seconds=1.5, peak_rss_mib=100.0,
        timing_cache=b"times", warnings=(),
    )  # fmt: skip


class ILogger:
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2

    def __init__(self):
        pass


class ExecutionContextAllocationStrategy:
    USER_MANAGED = "user managed"


class IProfiler:
    def __init__(self):
        pass


class IExecutionContext:
    profiler = None

    def __init__(self, engine):
        self._engine = engine
        self._spec = None
        self._shapes, self._addresses, self._memory = {}, {}, None

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle == self._engine.device.stream
        self._spec = self._engine.specs[profile_index]
        return True

    def set_input_shape(self, name, shape):
        assert self._spec is not None
        self._shapes[name] = tuple(shape)
        (tensor,) = (tensor for tensor in self._spec.inputs if tensor.name == name)
        return tensor.shape == tuple(shape)

    def infer_shapes(self):
        return [tensor.name for tensor in self._spec.inputs if tensor.name not in self._shapes]

    def set_tensor_address(self, name, memory):
        assert memory % 256 == 0, "TensorRT wants 256-byte alignment"
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory, size):
        assert size >= self._engine.device_memory_size_v2
        self._memory = memory

    def execute_async_v3(self, stream_handle):
        if stream_handle != self._engine.device.stream or self._memory is None:
            return False
        spec, addresses = self._spec, dict(self._addresses)
        if any(tensor.name not in addresses for tensor in (*spec.inputs, *spec.outputs)):
            return False
        device, session = self._engine.device, self._engine.session

        def memory(tensor):
            kind = np.dtype(tensor.dtype)
            return device.view(
                DeviceArray(pointer=addresses[tensor.name], shape=tensor.shape, dtype=kind,
                            owner=None)
            )  # fmt: skip

        def run():
            device.counts["engine_runs"] = device.counts.get("engine_runs", 0) + 1
            found = session.run(
                [tensor.name for tensor in spec.outputs],
                {tensor.name: memory(tensor) for tensor in spec.inputs},
            )
            for tensor, value in zip(spec.outputs, found, strict=True):
                memory(tensor)[...] = value

        if self.profiler is None:
            device.enqueue(run)
            return True
        # A context with a profiler waits for its run, which the device asserts no capture meets.
        device.enqueue(run)
        device.synchronize()
        for layer, milliseconds in (("{ForeignNode[body]}", 2.0), ("head", 1.0)):
            self.profiler.report_layer_time(layer, milliseconds)
        return True


class ICudaEngine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, device, onnx_path, specs):
        self.device, self.specs = device, specs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(onnx_path), options, providers=["CPUExecutionProvider"]
        )
        self.contexts = []

    def create_execution_context(self, strategy):
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(IExecutionContext(self))
        return self.contexts[-1]


class Runtime:
    def __init__(self, trt, logger):
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, serialized_engine):
        trt = self._trt
        trt.loaded.append(bytes(serialized_engine))
        known = trt.plans.get(hashlib.sha256(bytes(serialized_engine).rstrip()).hexdigest())
        trt.num_refusals -= 1
        if known is None or trt.num_refusals >= 0:
            self._logger.log(ILogger.ERROR, "magic tag differs")
            return None
        trt.engines.append(ICudaEngine(trt.device, *known))
        return trt.engines[-1]


class FakeTensorrt:
    """The module. `builder` is a real TensorRT, whose classes build; None: `build_plan` does."""

    def __init__(self, device, *, version="10.3.0.30", builder=None, num_refusals=0):
        self.__name__, self.__version__ = "tensorrt", version
        self.device, self.num_refusals, self.num_built = device, num_refusals, 0
        self.plans, self.engines, self.loaded = {}, [], []
        self._builder = builder
        self.ILogger = ILogger if builder is None else builder.ILogger
        self.IProfiler = IProfiler
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def Runtime(self, logger):  # noqa: N802
        return Runtime(self, logger)

    def __getattr__(self, name):
        if self.__dict__.get("_builder") is None:
            raise AttributeError(f"the stand-in has no {name}")
        return getattr(self._builder, name)

    def learn(self, data, onnx_path, specs):
        """Notes a plan that a real builder made."""
        digest = hashlib.sha256(bytes(data).rstrip()).hexdigest()
        self.plans[digest] = (onnx_path, tuple(specs))
        self.num_built += 1
