"""The GPU through its bindings, on stand-ins for both; and that its absence is told in one line."""

# ruff: noqa: N802, N803
import builtins
import ctypes
import gc
import subprocess
import sys
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from child_programs import LOAD
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu import bindings as cuda_bindings
from dlm_edge.runtime.gpu import cuda
from dlm_edge.runtime.gpu import drivers as cuda_drivers
from dlm_edge.runtime.gpu.compile import OPS, compile_kernels
from dlm_edge.runtime.gpu.cuda import CudaDevice
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from emulation.libcuda import OK, Bindings, Pycuda, Status, images
from emulation.pairs import commit, compare_samples, make_pair, on_device, random_logits
from rules import decoding


@pytest.fixture
def no_bindings(monkeypatch):
    real = builtins.__import__

    def refusing(name, *rest):
        if name.split(".")[0] in ("pycuda", "cuda"):
            raise ImportError(f"No module named {name!r}\nand a second line")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_a_missing_binding_is_one_line_with_a_remedy(no_bindings):
    with pytest.raises(DeviceError, match=r"pycuda.*onnxruntime$") as error:
        CudaDevice()
    assert "\n" not in str(error.value)


def test_a_missing_compiler_is_one_line_with_a_remedy(no_bindings):
    with pytest.raises(DeviceError, match=r"NVRTC.*onnxruntime$") as error:
        compile_kernels(OPS / "cuda/copy.cu", (8, 7))
    assert "\n" not in str(error.value)


def install(monkeypatch, binding, failing=()):
    bindings = Bindings(failing)
    package = ModuleType("cuda.bindings")
    package.driver = bindings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    found = None
    if binding == "pycuda":
        found = ModuleType("pycuda")
        found.driver = Pycuda(bindings)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pycuda.driver", found.driver)
    monkeypatch.setitem(sys.modules, "pycuda", found)
    monkeypatch.setattr(cuda, "compile_kernels", images)
    return bindings


@pytest.fixture(params=["pycuda", "cuda-bindings"])
def bindings(request, monkeypatch):
    return install(monkeypatch, request.param)


def test_memory_goes_both_ways_and_is_freed(bindings):
    device = CudaDevice()
    assert (device.name, device.capability, device.stream) == ("Orin", (8, 7), 77)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    one, other = (device.empty(values.shape, np.float32) for _ in range(2))
    device.upload(one, values)
    device.copy(other, one)
    device.zero(one)
    assert np.array_equal(device.download(other), values)
    assert not device.download(one).any()
    assert device.memory() == (1 << 30, 1 << 33)
    held = len(bindings.memory)
    del one, other
    assert len(bindings.memory) == held - 2
    device.close()


def test_mapped_memory_is_zeroed_and_outlives_the_call(bindings):
    device = CudaDevice()
    host, pointer = device.mapped((3, 2), np.int32)
    assert host.shape == (3, 2)
    assert not host.any()
    assert pointer == host.ctypes.data
    host[1] = 7
    assert host.sum() == 14


def test_kernels_run_and_steps_are_captured_and_replayed(bindings):
    device = ReplayingDevice(CudaDevice())
    ops = CudaOps(device, run_ahead=False)
    settings = decoding(rule="low_confidence", temperature=1.0)
    pair = make_pair(settings, block=6, vocab=90, cuda=ops)
    source = random_logits(1, 6, 90)
    logits = on_device(ops, source)
    steps = 0
    for position in (0, 6, 12):
        pair.begin(position=position)
        while pair.host.num_masked:
            steps += 1
            pair.forms[0].sample(logits, pair.canvases[0])
            pair.forms[1].sample(source, pair.canvases[1])
            # Compared after the commit: comparing before it would part the step in two.
            progress = commit(pair.forms[1], pair.canvases[1])
            assert commit(pair.forms[0], pair.canvases[0]) == progress
            compare_samples(pair)
    assert device.num_captured == 1
    assert device.num_replayed == steps - 1 > 6
    assert "cuGraphInstantiate" in bindings.calls
    device.close()


def test_a_context_of_pycuda_is_popped_once_however_its_device_ends(monkeypatch):
    install(monkeypatch, "pycuda")
    pycuda = sys.modules["pycuda.driver"]
    device = CudaDevice()
    assert pycuda.pushed == 1
    device.close()
    device.close()
    assert pycuda.pushed == 0
    dropped = CudaDevice()
    del device, dropped
    gc.collect()
    assert pycuda.pushed == 0
    assert pycuda.destroyed == 0  # memory may still be freed in it


AT_EXIT = (
    LOAD
    + """
import atexit, types
sys.path.insert(0, sys.argv.pop(1))
from emulation.libcuda import Bindings, Pycuda
from dlm_edge.runtime.gpu.cuda import CudaDevice

driver = Pycuda(Bindings())
atexit.register(lambda: print("left on the stack:", driver.pushed))
package = types.ModuleType("pycuda")
package.driver = driver
sys.modules.update({"pycuda": package, "pycuda.driver": driver})
device = CudaDevice()
print("while it runs:", driver.pushed)
"""
)


def test_a_program_that_closes_nothing_ends_with_no_context_pushed():
    """Else pycuda aborts the process, whatever it has done."""
    tests = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(tests.parent), str(tests)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["while it runs: 1", "left on the stack: 0"], done.stderr


def test_a_context_that_somebody_else_has_popped_is_no_fault(monkeypatch):
    install(monkeypatch, "pycuda")
    device = CudaDevice()
    sys.modules["pycuda.driver"].pushed = 0
    device.close()


def test_mapped_memory_lives_as_long_as_its_array(monkeypatch):
    bindings = install(monkeypatch, "cuda-bindings")
    device = CudaDevice()
    host, _ = device.mapped((3, 2), np.int32)
    part = host[1:]
    del host
    gc.collect()
    assert bindings.freed == []
    del part
    gc.collect()
    assert len(bindings.freed) == 1


def test_values_of_another_type_are_converted_on_their_way_in(bindings):
    device = CudaDevice()
    array = device.empty((3,), np.int32)
    device.upload(array, np.array([1, 2, 3], np.int64))
    assert device.download(array).tolist() == [1, 2, 3]


def test_what_is_downloaded_is_waited_for(bindings):
    device = CudaDevice()
    array = device.empty((3,), np.int32)
    before = len(bindings.calls)
    device.download(array)
    assert bindings.calls[before] == "cuMemcpyDtoHAsync"
    assert bindings.calls[-1] == "cuStreamSynchronize"


def test_a_capture_that_breaks_off_ends_and_steps_are_freed(bindings):
    device = CudaDevice()

    def breaks():
        raise DeviceError("refused")

    with pytest.raises(DeviceError, match="refused"):
        device.capture(breaks)
    assert bindings.recorded is None
    step = device.capture(lambda: None)
    assert bindings.calls.count("cuGraphDestroy") == 1
    step.replay()
    del step
    gc.collect()
    assert bindings.calls.count("cuGraphExecDestroy") == 1


class Nvrtc:
    """`cuda.bindings.nvrtc`, which says what it was given; `refuses` has it refuse the source."""

    def __init__(self, refuses=False):
        self.refuses = refuses
        self.given = {}

    def nvrtcVersion(self):
        return OK, 12, 6

    def nvrtcCreateProgram(self, src, name, numHeaders, headers, includeNames):
        assert numHeaders == len(headers) == len(includeNames)
        self.given = {"source": src, "name": name,
                      "headers": dict(zip(includeNames, headers, strict=True))}  # fmt: skip
        return OK, 5

    def nvrtcCompileProgram(self, prog, numOptions, options):
        assert numOptions == len(options)
        self.given["options"] = options
        return (Status(6) if self.refuses else OK,)

    def nvrtcGetCUBINSize(self, prog):
        return OK, 7

    def nvrtcGetCUBIN(self, prog, cubin):
        assert len(cubin) == 7
        ctypes.memmove(cubin, b"\x7fELF123", 7)
        return (OK,)

    def nvrtcGetProgramLogSize(self, prog):
        return OK, 40

    def nvrtcGetProgramLog(self, prog, log):
        ctypes.memmove(log, b"copy.cu(3): error: no such thing\nmore\0", 38)
        return (OK,)

    def nvrtcDestroyProgram(self, prog):
        self.given["destroyed"] = prog
        return (OK,)


def with_nvrtc(monkeypatch, tmp_path, **keys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = ModuleType("cuda.bindings")
    package.nvrtc = Nvrtc(**keys)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    return package.nvrtc  # type: ignore[attr-defined]


def test_a_source_reaches_nvrtc_with_its_headers_and_the_capability(monkeypatch, tmp_path):
    nvrtc = with_nvrtc(monkeypatch, tmp_path)
    assert compile_kernels(OPS / "cuda/copy.cu", (8, 7)) == b"\x7fELF123"
    names = ("cuda/copy.cuh", "cuda/state.cuh")
    headers = {name.encode(): (OPS / name).read_bytes() for name in names}
    assert nvrtc.given == {
        "source": (OPS / "cuda/copy.cu").read_bytes(),
        "name": b"copy.cu",
        "headers": headers,
        "options": [b"--gpu-architecture=sm_87", b"--std=c++17"],
        "destroyed": 5,
    }
    (image,) = (tmp_path / "dlm-edge" / "kernels").iterdir()
    assert image.name.endswith("-cuda12.6-sm_87.cubin")
    nvrtc.given = {}

    def begins():
        raise AssertionError("it is compiled already")

    assert compile_kernels(OPS / "cuda/copy.cu", (8, 7), begins) == b"\x7fELF123"
    assert nvrtc.given == {}


def test_what_nvrtc_complains_of_is_one_line(monkeypatch, tmp_path):
    with_nvrtc(monkeypatch, tmp_path, refuses=True)
    with pytest.raises(
        DeviceError, match=r"compile copy\.cu: copy\.cu\(3\): error: no such thing$"
    ):
        compile_kernels(OPS / "cuda/copy.cu", (8, 7))


def test_that_kernels_are_compiled_is_said_once_and_only_then(bindings, monkeypatch):
    notes = []
    device = CudaDevice(note=notes.append)
    for _ in range(2):
        device.kernels(OPS / "cuda/copy.cu", ("append_rows",))
    assert notes == ["compiling kernels for this GPU, once, which takes a minute on a board"]
    monkeypatch.setattr(cuda, "compile_kernels", lambda source, capability, begins:
                        images(source, capability, lambda: None))  # fmt: skip
    device = CudaDevice(note=notes.append)
    device.kernels(OPS / "cuda/copy.cu", ("append_rows",))
    assert len(notes) == 1


def test_the_first_choice_is_pycuda(monkeypatch):
    install(monkeypatch, "pycuda")
    assert isinstance(CudaDevice()._driver, cuda_drivers.PycudaDriver)
    install(monkeypatch, "cuda-bindings")
    assert isinstance(CudaDevice()._driver, cuda_bindings.BindingsDriver)


@pytest.mark.parametrize("binding", ["pycuda", "cuda-bindings"])
@pytest.mark.parametrize(
    ("call", "use", "message"),
    [
        ("cuInit", lambda device: None, "GPU number 0 cannot be used"),
        ("cuMemAlloc", lambda device: device.empty((1 << 20,), np.float32), "no 4.0 MiB left"),
        (
            "cuModuleLoadData",
            lambda device: device.kernels(OPS / "cuda/copy.cu", ("append_rows",)),
            r"refuses copy\.cu's image for sm_87.*update JetPack",
        ),
        ("cuStreamSynchronize", lambda device: device.synchronize(), "work on the GPU failed"),
        ("cuStreamBeginCapture", lambda device: device.capture(lambda: None), "capture a step"),
        ("cuGraphInstantiate", lambda device: device.capture(lambda: None), "instantiating"),
    ],
)
def test_a_call_that_fails_is_one_line(monkeypatch, binding, call, use, message):
    install(monkeypatch, binding, failing=[call])
    with pytest.raises(DeviceError, match=message) as error:
        use(CudaDevice())
    assert "\n" not in str(error.value)


def test_kernels_stay_loaded_as_long_as_the_device_is_open(monkeypatch):
    monkeypatch.setattr(cuda, "compile_kernels", lambda *_: b"")

    class Module:
        pass

    loaded = []

    def load(image):
        module = Module()
        loaded.append(weakref.ref(module))
        return module

    driver = SimpleNamespace(
        name="Orin", capability=(8, 7), Error=RuntimeError, load=load,
        function=lambda module, name: name, close=lambda: None, wait=lambda: None,
    )  # fmt: skip
    device = CudaDevice(driver=driver)
    device.kernels(OPS / "cuda/copy.cu", ("append_rows",))
    gc.collect()
    assert loaded[0]() is not None  # what unloads with its module cannot be launched
