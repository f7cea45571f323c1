"""TensorRT on a GPU: deserialise a plan, bind device buffers once, enqueue on one stream.

Kept to the calls themselves, since it cannot run where there is no GPU: what decides anything
stands in `tensorrt_build.py` and `plan_cache.py`, which do run there. One execution context per
shape, its profile, shapes and addresses set once; all contexts share one piece of
scratch memory, since only one runs at a time. A run enqueues and returns: the device's stream
orders it with the kernels and copies around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.manifest import GraphKey, GraphSpec
from ..errors import DeviceError, EngineError, brief
from ..gpu.device import Device
from ..gpu.facts import GpuFacts
from ..gpu.replay import ReplayingDevice
from .base import LayerTime, LayerTimes, find_spec
from .device_buffers import DeviceBuffers
from .plan_cache import PlanCache
from .tensorrt_build import OUT_OF_MEMORY, BuildSettings
from .tensorrt_log import process_logger
from .tensorrt_plans import Plan, graph_files, plan_for

_MIB = 1 << 20


class TensorRtEngine:
    """One graph at one static shape: an execution context with everything bound."""

    def __init__(
        self,
        context: Any,
        spec: GraphSpec,
        profile_index: int,
        buffers: DeviceBuffers,
        device: Device,
        log: Any,
    ) -> None:
        stream = device.stream
        self._log = log
        self._context: Any = context
        self.spec, self._device, self._stream = spec, device, stream
        if not context.set_optimization_profile_async(profile_index, stream):
            raise self._refused(f"its profile {profile_index}")
        for tensor in spec.inputs:
            if not context.set_input_shape(tensor.name, tensor.shape):
                raise self._refused(f"the shape of {tensor.name}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:  # what the bindings make of a failure
            raise self._refused(f"its shapes ({error})") from error
        if unknown:
            raise self._refused(f"its shapes ({', '.join(unknown)})")
        self.inputs: Mapping[str, Any] = {t.name: buffers.view(t, spec) for t in spec.inputs}
        self.outputs: Mapping[str, Any] = {t.name: buffers.view(t, spec) for t in spec.outputs}
        for name, array in (*self.inputs.items(), *self.outputs.items()):
            if not context.set_tensor_address(name, array.pointer):
                raise self._refused(f"the address of {name}")

    def run(self) -> None:
        """Enqueues one run on the device's stream; EngineError, then or later, if refused."""
        self._device.submit(id(self._context), self._enqueue)

    def release(self) -> None:
        """Drops the context and the buffers: this engine cannot run any more."""
        self._context = None
        self.inputs = self.outputs = {}

    def _enqueue(self) -> None:
        if self._context is None or not self._context.execute_async_v3(self._stream):
            raise self._refused("to run")

    def _refused(self, what: str) -> EngineError:
        return EngineError(
            f"TensorRT refuses {what} for {self.spec.label}{_reason(self._log)}: "
            "build the plan again with --rebuild, or use --engine onnxruntime"
        )


def _reason(log: Any) -> str:
    """Returns the first thing that TensorRT complained of since it was last asked, in brackets."""
    errors, _ = log.take()
    return f" ({brief(errors[0], 200)})" if errors else ""


class TensorRtEngines:
    """All graphs of one bundle on TensorRT."""

    name = "tensorrt"
    threads = 1

    def __init__(
        self,
        trt: Any,
        bundle: Bundle,
        device: Device,
        gpu: GpuFacts,
        *,
        settings: BuildSettings | None = None,
        reason: str = "",
        note: Callable[[str], None] = lambda line: None,
        report: Callable[[float, str], None] = lambda fraction, phase: None,
    ) -> None:
        """Loads the bundle's plans, building those that the cache lacks.

        Args:
            note: Gets a line when a plan is damaged or built again.

        Raises:
            EngineError: A plan can neither be loaded nor built.
            DeviceError: There is no memory for the buffers.
        """
        self._trt, self.specs, self.device = trt, bundle.manifest.graphs, device
        self.reason = reason
        self._buffers = DeviceBuffers(device, self.specs)
        self._engines: dict[GraphKey, TensorRtEngine] = {}
        self._plans: dict[str, tuple[tuple[GraphSpec, ...], Any]] = {}
        self._plan_bytes = 0
        self._clocks: Any = None
        self._captures = False
        cache = PlanCache(note)
        # Engines live no longer than the runtime that made them.
        self._log = process_logger(trt)
        self._runtime = trt.Runtime(self._log)
        for file in graph_files(bundle):
            self._plans[file] = self._load(
                lambda rebuild, file=file: plan_for(
                    trt,
                    bundle,
                    file,
                    gpu,
                    cache,
                    settings or BuildSettings(),
                    rebuild=rebuild,
                    report=report,
                ),
                note,
            )
        size = max(engine.device_memory_size_v2 for _, engine in self._plans.values())
        self._scratch_bytes = size
        self._scratch: Any = self._buffers.scratch(size)
        self._buffers.reserve()

    def _load(
        self, find: Callable[[bool], Plan], note: Callable[[str], None]
    ) -> tuple[tuple[GraphSpec, ...], Any]:
        """Returns a plan's shapes and its engine, which has no further need of the plan.

        A plan that TensorRT cannot load is built again, once.
        """
        runtime = self._runtime
        for rebuild in (False, True):
            plan = find(rebuild)
            engine = runtime.deserialize_cuda_engine(plan.data)
            if engine is not None:
                self._plan_bytes += len(plan.data)
                return plan.specs, engine
            reasons = self._log.take()[0] or ["no reason given"]
            if any(OUT_OF_MEMORY.search(reason) for reason in reasons):
                free = self.device.memory()[0] / _MIB
                raise EngineError(
                    f"out of device memory while loading a plan of {plan.data.nbytes / _MIB:.1f} "
                    f"MiB, {free:.1f} MiB are free: close other programs, or export with fewer "
                    "bits or a smaller model"
                )
            if not rebuild:
                note(
                    f"TensorRT cannot load the plan ({brief(reasons[0], 160)}) and builds it again"
                )
        raise EngineError(
            f"TensorRT cannot load the plan that it just built: {brief(reasons[0], 200)}; "
            "use --engine onnxruntime"
        )

    def engine(self, spec: GraphSpec) -> TensorRtEngine:
        key = spec.key
        if key not in self._engines:
            self._engines[key] = self._make(find_spec(self.specs, spec))
        return self._engines[key]

    def _make(self, spec: GraphSpec) -> TensorRtEngine:
        specs, engine = self._plans[spec.file]
        trt = self._trt
        context = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise EngineError(
                f"TensorRT gives no execution context for {spec.label}{_reason(self._log)}: "
                "close other programs, or take a smaller --block or --context"
            )
        context.set_device_memory(self._scratch.pointer, self._scratch_bytes)
        if self._clocks is not None:
            context.profiler = self._clocks
        return TensorRtEngine(
            context, spec, specs.index(spec), self._buffers, self.device, self._log
        )

    def account(self) -> dict[str, int]:
        return {
            "weights": self._plan_bytes,
            "scratch": self._scratch_bytes,
            **self._buffers.account(),
        }

    def start_layers(self) -> None:
        """Starts the clocks. Nothing is captured meanwhile: a profiler does not allow it."""
        self._drop_contexts()
        self._clocks = layer_profiler(self._trt)
        if isinstance(self.device, ReplayingDevice):
            self._captures, self.device.captures = self.device.captures, False

    def take_layers(self) -> LayerTimes:
        self._drop_contexts()
        clocks, self._clocks = self._clocks, None
        if isinstance(self.device, ReplayingDevice):
            self.device.captures = self._captures
        return layer_times(clocks.heard, self._scratch_bytes)

    def _drop_contexts(self) -> None:
        self.device.flush()
        self.device.synchronize()
        self.device.forget()  # captured steps run contexts that go now
        self._release()

    def _release(self) -> None:
        for bound in self._engines.values():
            bound.release()
        self._engines.clear()

    def close(self) -> None:
        """Releases contexts, engines, buffers and the device, in this order."""
        if not self._plans:
            return
        with suppress(DeviceError):  # already raised where the work was waited for
            self.device.synchronize()
        self.device.forget()  # captured steps run in memory that goes now
        self._release()
        self._plans.clear()
        self._buffers.clear()
        self._scratch = None
        self.device.close()


def layer_profiler(trt: Any) -> Any:
    """Returns an IProfiler with `heard`: milliseconds of every call by layer, in order."""

    class Layers(trt.IProfiler):
        """Told of every layer after every run."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.heard: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """One layer ran."""
            self.heard.setdefault(layer_name, []).append(ms)

    return Layers()


def layer_times(heard: dict[str, list[float]], scratch_bytes: int) -> LayerTimes:
    """Returns what a profiler recorded, the longest first; `scratch_bytes` is what runs share."""
    layers = [
        LayerTime(
            name=name,
            kind=_kind(name),
            seconds=median(milliseconds) / 1000,
            calls=len(milliseconds),
            bytes=None,
        )
        for name, milliseconds in heard.items()
    ]
    layers.sort(key=lambda layer: -layer.seconds * layer.calls)
    return LayerTimes(layers=tuple(layers), allocator={"scratch": scratch_bytes})


def _kind(name: str) -> str:
    """Returns a word for what a layer does: the first of TensorRT's names for fused regions."""
    if "ForeignNode" in name or "myl" in name:
        return "fused"
    return "reformat" if name.startswith("Reformatting") else "layer"
