"""Every call of cuda-bindings in our source against its releases: names, and numbers of arguments.

The table is what `inspect.signature` says of 12.9.10, for JetPack 6, and of 13.5.0, for JetPack
7.2, alike; where cuda-bindings is installed, it is asked itself.
"""

import ast
import inspect
import re

import pytest
from dlm_edge.runtime.gpu import bindings as cuda_bindings
from dlm_edge.runtime.gpu import compile as cuda_compile
from dlm_edge.runtime.gpu import cuda
from emulation.libcuda import Bindings

PARAMETERS = {
    "cuInit": 1, "cuDeviceGet": 1, "cuDevicePrimaryCtxRetain": 1, "cuCtxSetCurrent": 1,
    "cuDeviceGetName": 2, "cuDeviceGetAttribute": 2, "cuStreamCreate": 1, "cuMemAlloc": 1,
    "cuMemFree": 1, "cuMemcpyHtoDAsync": 4, "cuMemcpyDtoHAsync": 4, "cuMemcpyDtoDAsync": 4,
    "cuMemsetD8Async": 4, "cuMemHostAlloc": 2, "cuMemFreeHost": 1, "cuMemHostGetDevicePointer": 2,
    "cuModuleLoadData": 1, "cuModuleGetFunction": 2, "cuLaunchKernel": 11,
    "cuStreamSynchronize": 1, "cuMemGetInfo": 0, "cuStreamBeginCapture": 2,
    "cuStreamEndCapture": 1, "cuGraphInstantiate": 2, "cuGraphLaunch": 2, "cuGraphDestroy": 1,
    "cuGraphExecDestroy": 1, "nvrtcVersion": 0, "nvrtcCreateProgram": 5, "nvrtcCompileProgram": 3,
    "nvrtcGetCUBINSize": 1, "nvrtcGetCUBIN": 2, "nvrtcDestroyProgram": 1,
    "nvrtcGetProgramLogSize": 1, "nvrtcGetProgramLog": 2,
}  # fmt: skip
CONSTANTS = {
    "CUstreamCaptureMode": "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL",
    "CUdevice_attribute": "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
}
SHAPE = 6
"""Arguments of a launch that our source writes as one starred tuple."""


def our_calls():
    """Gives (function, number of arguments) of every call."""
    for module in (cuda, cuda_bindings, cuda_compile):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call):
                function, arguments = node.func, node.args
                name = getattr(function, "attr", None)
                if name == "_do" and isinstance(arguments[0], ast.Constant):
                    name, arguments = arguments[0].value, arguments[1:]
                if isinstance(name, str) and re.match(r"cu[A-Z]|nvrtc[A-Z]", name):
                    starred = sum(isinstance(one, ast.Starred) for one in arguments)
                    yield name, len(arguments) + starred * (SHAPE - 1)


def test_every_call_has_the_arguments_that_the_releases_take():
    calls = set(our_calls())
    assert calls
    for name, count in calls:
        assert name in PARAMETERS, f"{name} is not in the table"
        assert count == PARAMETERS[name], name
    freed = {"cuMemFree", "cuMemFreeHost"}  # handed on, called where memory goes
    assert {name for name, _ in calls} | freed == set(PARAMETERS)


def test_the_stand_in_of_the_tests_has_these_signatures_too():
    for name, function in vars(Bindings).items():
        if name.startswith("cu"):
            assert len(inspect.signature(function).parameters) - 1 == PARAMETERS[name], name


def test_the_table_is_what_the_installed_release_says():
    driver = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    from cuda.bindings import nvrtc

    for name, count in PARAMETERS.items():
        module = nvrtc if name.startswith("nvrtc") else driver
        assert len(inspect.signature(getattr(module, name)).parameters) == count, name
    for kind, value in CONSTANTS.items():
        assert hasattr(getattr(driver, kind), value)
    assert int(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) == 1
    assert int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING) == cuda_bindings.NON_BLOCKING
    assert int(driver.CU_MEMHOSTALLOC_DEVICEMAP) == cuda_bindings.DEVICE_MAP
