"""What can be said of the GPU without one: that its absence is told in one line."""

import builtins

import pytest
from dlm_edge.runtime.cuda import CudaDevice, compile_kernels
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.ops.cuda_ops import KERNELS


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
        compile_kernels(KERNELS / "copy.cu", (8, 7))
    assert "\n" not in str(error.value)
