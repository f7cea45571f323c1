"""ONNX Runtime on the CPU: one session per graph file, every shape of it through that session.

The session keeps `rows` and `context` symbolic. Measured on two AVX2 cores at dim 384 x 6 layers,
vocabulary 8,192, rows 32, context 256: the same 8.3 ms per run as a session with both dimensions
fixed, while every further session would prepack its own copy of the weights. Buffers are NumPy
arrays allocated once and bound by address, so a run copies nothing.

Knows no family: it goes by the manifest's tensors, and by the role `kv` for the one input that all
shapes share.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.manifest import GraphKey, GraphSpec, Manifest
from ..errors import EngineError, brief
from ..process import return_freed_memory, usable_cores
from .base import CPU_TARGETS, LayerTimes, find_spec
from .buffers import Buffers, host_buffers
from .onnxruntime_layers import read_profiles

MAX_DEFAULT_THREADS = 8
"""Blocks of 32 rows do not feed more cores than about this."""


def is_foreign_int8(manifest: Manifest) -> bool:
    """True for quantised graphs that were made for other kernels than this backend's."""
    return manifest.precision == "int8" and manifest.target not in CPU_TARGETS


def import_backend() -> Any:
    """Returns the onnxruntime module; EngineError that says what to install if it cannot be had.

    ONNX Runtime 1.29 and later send telemetry unless this variable is set before the import; a
    value that the user has set stays.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except (ImportError, AttributeError) as error:
        remedy = "pip install 'dlm-edge[cpu]'"
        if "numpy" in str(error).lower() or "_ARRAY_API" in str(error):
            remedy = f"it was built for NumPy 1, not {np.__version__}: pip install 'numpy<2'"
        elif not isinstance(error, ModuleNotFoundError):
            remedy = "it is installed and damaged: pip install --force-reinstall onnxruntime"
        raise EngineError(
            f"the onnxruntime engine needs the package onnxruntime ({error}): {remedy}"
        ) from error
    return onnxruntime


def default_threads() -> int:
    """Returns how many cores this process may use, 8 at most."""
    return min(usable_cores(), MAX_DEFAULT_THREADS)


class OnnxRuntimeEngine:
    """One graph at one static shape."""

    def __init__(self, session: Any, spec: GraphSpec, buffers: Buffers[np.ndarray]) -> None:
        self._session = session
        self.spec = spec
        self.inputs: Mapping[str, np.ndarray] = {t.name: buffers.view(t, spec) for t in spec.inputs}
        self.outputs: Mapping[str, np.ndarray] = {
            t.name: buffers.view(t, spec) for t in spec.outputs
        }
        """Any run of the set overwrites them."""
        self._binding = session.io_binding()
        for name, array in self.inputs.items():
            self._binding.bind_input(
                name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
            )
        for name, array in self.outputs.items():
            self._binding.bind_output(
                name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
            )

    def run(self) -> None:
        """Executes the graph on the buffers; raises EngineError when ONNX Runtime fails."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the bindings raise plain subclasses of Exception
            raise EngineError(_failed(f"graph {self.spec.name} failed", error)) from error


_NO_MEMORY = re.compile(
    r"bad.alloc|allocate memory|out of memory|not enough memory|pthread_create", re.IGNORECASE
)


def _failed(what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _NO_MEMORY.search(reason):
        remedy = "too little memory: close other programs, or take a smaller bundle"
    else:
        remedy = "the bundle does not fit this version, export it again"
    return f"ONNX Runtime: {what}: {brief(reason, 160)}; {remedy}"


class OnnxRuntimeEngines:
    """All graphs of one bundle on ONNX Runtime."""

    name = "onnxruntime-cpu"
    device = None

    def __init__(self, bundle: Bundle, *, threads: int | None = None, reason: str = "") -> None:
        self._backend = import_backend()
        return_freed_memory()
        self._bundle = bundle
        self._foreign_int8 = is_foreign_int8(bundle.manifest)
        self.reason = reason
        self.threads = default_threads() if threads is None else threads
        self._buffers = host_buffers(bundle.manifest.graphs)
        self._sessions: dict[str, Any] = {}
        self._engines: dict[GraphKey, OnnxRuntimeEngine] = {}
        self._profiles: tempfile.TemporaryDirectory[str] | None = None

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """Every graph shape on offer."""
        return self._bundle.manifest.graphs

    def engine(self, spec: GraphSpec) -> OnnxRuntimeEngine:
        """Returns the engine of this shape, its session made on first use; EngineError if none."""
        key = spec.key
        if key not in self._engines:
            self._engines[key] = self._make(find_spec(self.specs, spec))
        return self._engines[key]

    def account(self) -> Mapping[str, int]:
        """Returns bytes by part; weights are those of the open sessions, as stored on disk."""
        members = self._bundle.manifest.members
        stems = {Path(file).with_suffix("") for file in self._sessions}
        weights = sum(m.size for name, m in members.items() if Path(name).with_suffix("") in stems)
        return {"weights": weights, **self._buffers.account()}

    def start_layers(self) -> None:
        """Opens all sessions again: a session profiles from its creation on."""
        self._drop_sessions()
        self._profiles = tempfile.TemporaryDirectory(prefix="dlm-layers-")

    def take_layers(self) -> LayerTimes:
        assert self._profiles is not None
        with self._profiles:
            paths = [Path(session.end_profiling()) for session in self._sessions.values()]
            self._profiles = None
            self._drop_sessions()
            return read_profiles(paths)

    def close(self) -> None:
        """Releases sessions and buffers."""
        self._drop_sessions()
        self._buffers.clear()
        if self._profiles is not None:
            self._profiles.cleanup()

    def _drop_sessions(self) -> None:
        self._engines.clear()
        self._sessions.clear()

    def _make(self, spec: GraphSpec) -> OnnxRuntimeEngine:
        self._open_from(spec.file)
        try:
            return OnnxRuntimeEngine(self._sessions[spec.file], spec, self._buffers)
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineError(_failed(f"buffers of {spec.name} cannot be bound", error)) from error

    def _open_from(self, file: str) -> None:
        """Opens a graph file, and before it those behind it, which read what it gives.

        The last is a head, whose matrix is there three times while it is opened: that is less
        than the other graphs take, if they are not there yet.
        """
        firsts = {spec.file: spec for spec in reversed(self.specs)}
        files = list(dict.fromkeys(spec.file for spec in self.specs))
        for name in reversed(files[files.index(file) :]):
            if name not in self._sessions:
                self._sessions[name] = self._open(firsts[name])

    def _open(self, spec: GraphSpec) -> Any:
        options = self._backend.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised as EngineError, so not printed too
        # A saved allocation pattern per shape costs 6 MiB and no run is faster with it.
        options.enable_mem_pattern = False
        # Spinning threads take the cores from whatever else runs: on a busy machine a run of two
        # threads takes 86 ms with them, 46 without.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # On x86 without VNNI, the default kernels for uint8 and int8 saturate: take others.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if self._profiles is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profiles.name) / str(len(self._sessions)))
        if self._foreign_int8:
            # Fused to its U8S8 kernels, a graph whose weights use all 8 bits saturates on x86
            # without VNNI: 0.13 relative error of the logits where 0.02 is the rounding's own.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        path = str(self._bundle.member(spec.file))
        try:
            session = self._backend.InferenceSession(
                path,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # which prints its fault to stdout, and tries the same again
            )
        except Exception as error:  # the bindings raise plain subclasses of Exception
            raise EngineError(_failed(f"{spec.file} cannot be loaded", error)) from error
        for side, tensors, found in (
            ("inputs", spec.inputs, session.get_inputs()),
            ("outputs", spec.outputs, session.get_outputs()),
        ):
            wanted, names = sorted(t.name for t in tensors), sorted(item.name for item in found)
            if wanted != names:
                raise EngineError(
                    f"{spec.file} has the {side} {', '.join(names)}, the manifest wants "
                    f"{', '.join(wanted)}: export the bundle again"
                )
        return session
