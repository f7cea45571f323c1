"""Builds a plan (a serialised TensorRT engine) from a bundle's ONNX, where the plan will run.

One plan per ONNX file, with one optimisation profile per (block, context) pair, each fixed to that
shape, so that all shapes share one copy of the weights. Further profiles ask for no extra memory:
their kernels take the weights as they are laid out. Networks are strongly
typed: what computes in float16 or int8 is written in the ONNX, because TensorRT 11 knows nothing
else.

The module is handed in, so the same code runs full TensorRT on a board and TensorRT-RTX on a
machine without a GPU. It touches only what TensorRT 10.3, 10.16 and 11 have in common, and the
flags of weak typing, which 11 lacks, only when they are asked for; a test holds it to that.
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.manifest import GraphSpec
from ..errors import ConfigError, EngineError, brief
from ..process import peak_rss_mib
from .tensorrt_log import process_logger, progress_monitor

MIN_VERSION = (10, 3)
_MIB = 1 << 20
OUT_OF_MEMORY = re.compile(r"out ?of ?memory|NvMapMemAlloc|insufficient memory", re.IGNORECASE)
"""What TensorRT and L4T's allocator say of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """What decides how a plan is built; part of the plan's name in the cache."""

    workspace_mib: int = 512
    """Scratch memory that a kernel may use, at build and at run."""
    optimization_level: int = 3
    """0 to 5: how long TensorRT searches."""
    weakly_typed: bool = False
    """TensorRT 10 only: it chooses precisions itself, among float32 and the bundle's."""

    def __post_init__(self) -> None:
        if not 1 <= self.workspace_mib <= 1 << 20:
            raise ConfigError(f"workspace_mib must be 1 to 2^20, found {self.workspace_mib}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level must be 0 to 5, found {self.optimization_level}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A plan in memory, and what it took to build."""

    data: memoryview
    seconds: float
    peak_rss_mib: float
    """Highest resident memory of this process so far."""
    timing_cache: bytes
    """Measured kernel times of this GPU, for the next build; empty if TensorRT gave none."""
    warnings: tuple[str, ...]


def import_tensorrt() -> Any:
    """Returns the tensorrt module; raises EngineError."""
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(
            f"the tensorrt engine needs the Python package tensorrt ({error}): on a Jetson it is "
            "JetPack's own (apt install python3-libnvinfer; a virtual environment needs "
            "--system-site-packages); without it --engine onnxruntime runs on the CPU"
        ) from error
    trt: Any = tensorrt  # a type checker takes it for the module beside this one
    version = str(trt.__version__)
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < MIN_VERSION:
        raise EngineError(
            f"TensorRT 10.3 or newer is needed, found {version}: update to JetPack 6.1 or newer, "
            "or use --engine onnxruntime"
        )
    return trt


def build_plan(
    trt: Any,
    onnx_path: Path,
    specs: Sequence[GraphSpec],
    settings: BuildSettings,
    *,
    timing_cache: bytes = b"",
    configure: Callable[[Any], None] = lambda config: None,
    report: Callable[[float, str], None] = lambda fraction, phase: None,
) -> BuiltPlan:
    """Builds one plan; profile i is the shape of specs[i].

    The build runs in a thread of its own while this one waits, so that Ctrl-C is heard: TensorRT
    then stops and KeyboardInterrupt goes on.

    Args:
        onnx_path: The unpacked graph; its weights lie beside it.
        timing_cache: From an earlier build with the same TensorRT on the same GPU.
        configure: Last word on the builder config, for what one TensorRT needs and others lack.

    Raises:
        EngineError: TensorRT refuses the graph, runs out of memory, or gives no plan.
    """
    cancelled, finished = threading.Event(), threading.Event()
    done: list[BuiltPlan] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            monitor = progress_monitor(trt, report, cancelled)
            done.append(_build(trt, onnx_path, specs, settings, timing_cache, configure, monitor))
        except BaseException as error:  # handed to the thread that waits
            # Its frames hold TensorRT's objects, which must be gone before the interpreter is.
            traceback.clear_frames(error.__traceback__)
            failed.append(error)
        finally:
            finished.set()

    # No daemon: TensorRT must not call back into an interpreter that is gone.
    threading.Thread(target=work, name="tensorrt-build").start()
    try:
        # Not Thread.join: interrupted, Python 3.10's and 3.11's takes the thread for ended.
        while not finished.wait(0.2):
            pass
    except KeyboardInterrupt:
        cancelled.set()
        finished.wait()
        raise
    if failed:
        raise failed[0]
    return done[0]


def _build(
    trt: Any,
    onnx_path: Path,
    specs: Sequence[GraphSpec],
    settings: BuildSettings,
    timing_cache: bytes,
    configure: Callable[[Any], None],
    monitor: Any,
) -> BuiltPlan:
    begin = time.perf_counter()
    logger = process_logger(trt)
    logger.take()
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the bindings raise when there is no driver
        raise EngineError(_no_builder(logger.take()[0])) from error
    network = builder.create_network(_network_flags(trt, settings))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise EngineError(_parser_message(parser, onnx_path.name, logger.take()[0]))
    _check_tensors(network, onnx_path.name, specs)
    config = builder.create_builder_config()
    _set_options(trt, config, specs, settings)
    _set_profiles(builder, config, specs)
    attach_timings(config, timing_cache)
    config.progress_monitor = monitor
    configure(config)
    plan = builder.build_serialized_network(network, config)
    errors, warnings = logger.take()
    if plan is None:
        raise EngineError(_failure(errors, onnx_path.name, specs, settings))
    return BuiltPlan(
        data=memoryview(plan).cast("B"),
        seconds=time.perf_counter() - begin,
        peak_rss_mib=peak_rss_mib(),
        timing_cache=measured_timings(config),
        warnings=tuple(warnings),
    )


def _network_flags(trt: Any, settings: BuildSettings) -> int:
    if settings.weakly_typed:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _set_options(
    trt: Any, config: Any, specs: Sequence[GraphSpec], settings: BuildSettings
) -> None:
    """Sets everything but the profiles on a builder config, in place."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
    config.builder_optimization_level = settings.optimization_level
    # A small GPU gains nothing from streams beside ours, which each want memory and events.
    config.max_aux_streams = 0
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
    config.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    # On by default, and 10 bits of mantissa are not what a graph typed float32 was checked with.
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.weakly_typed:
        for name in {"fp16": ["FP16"], "int8": ["FP16", "INT8"]}.get(specs[0].precision, []):
            flag = getattr(trt.BuilderFlag, name, None)
            if flag is None:
                raise EngineError(
                    f"TensorRT {trt.__version__} has no weak typing: leave out --weak-types"
                )
            config.set_flag(flag)


def _set_profiles(builder: Any, config: Any, specs: Sequence[GraphSpec]) -> None:
    """Adds one profile per spec, in order, each fixed to its one shape.

    The first has its choice of kernels; the others are to do with the weights as they then lie.
    """
    for index, spec in enumerate(specs):
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            profile.set_shape(tensor.name, tensor.shape, tensor.shape, tensor.shape)
        if index:
            profile.extra_memory_target = 0.0
        if config.add_optimization_profile(profile) != index:
            raise EngineError(
                f"TensorRT refuses the shape {spec.label} of {spec.file}: export the bundle "
                "again with other sizes"
            )


def _check_tensors(network: Any, file: str, specs: Sequence[GraphSpec]) -> None:
    inputs = sorted(network.get_input(index).name for index in range(network.num_inputs))
    outputs = sorted(network.get_output(index).name for index in range(network.num_outputs))
    for spec in specs:
        for side, found, tensors in (
            ("inputs", inputs, spec.inputs),
            ("outputs", outputs, spec.outputs),
        ):
            wanted = sorted(tensor.name for tensor in tensors)
            if found != wanted:
                raise EngineError(
                    f"{file} has the {side} {', '.join(found) or '(none)'}, the manifest wants "
                    f"{', '.join(wanted)}: export the bundle again"
                )


def _no_builder(errors: Sequence[str]) -> str:
    reason = brief(errors[0], 200) if errors else "no reason given"
    return (
        f"TensorRT finds no usable GPU or driver here ({reason}): build on the machine that will "
        "run the bundle, or use --engine onnxruntime"
    )


def _parser_message(parser: Any, file: str, errors: Sequence[str]) -> str:
    """Names the first node that TensorRT's parser refuses, and why."""
    if not parser.num_errors:
        reason = brief(errors[0], 200) if errors else "no reason given"
        return f"TensorRT cannot read {file}: {reason}; export the bundle again"
    refusal = parser.get_error(0)
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    name = refusal.node_name()
    node = f"node {name} ({refusal.node_operator()})" if name else file
    reason = brief(refusal.desc(), 200)
    return (
        f"TensorRT's parser refuses {node} of {file}: {reason}{more}; export the bundle again with "
        "this version of dlm-export, or use --engine onnxruntime"
    )


def _failure(
    errors: Sequence[str], file: str, specs: Sequence[GraphSpec], settings: BuildSettings
) -> str:
    """Says why there is no plan, and of lack of memory what the user can do."""
    memory = next((line for line in errors if OUT_OF_MEMORY.search(line)), None)
    if memory is not None:
        largest = max(specs, key=lambda spec: spec.rows * (spec.rows + spec.context))
        return (
            f"out of device memory while building {file} (largest shape: {largest.label}; "
            f"workspace {settings.workspace_mib} MiB): {brief(memory, 160)}; "
            "close other programs, or export with a smaller --block or --context"
        )
    reason = brief(errors[0], 300) if errors else "it gave no reason"
    return f"TensorRT builds no plan from {file}: {reason}"


def attach_timings(config: Any, known: bytes) -> None:
    """Gives a builder config the times to begin with, else an empty set for what is measured.

    TensorRT hands out only the times of a set that was attached before the build.

    Times of another GPU or version, which TensorRT does not read or refuses, count as none.
    """
    for data in (known, b"") if known else (b"",):
        times = config.create_timing_cache(data)
        if times is not None and config.set_timing_cache(times, False):
            return


def measured_timings(config: Any) -> bytes:
    """Returns the times after a build; empty if TensorRT gives none."""
    times = config.get_timing_cache()
    if times is None:
        return b""
    return bytes(memoryview(times.serialize()))
