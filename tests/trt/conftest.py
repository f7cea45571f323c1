"""TensorRT-RTX: the same parser and builder as TensorRT's, without a GPU."""

import platform
import sys

import pytest


def backend():
    """Returns the module; skips only where it has no wheel."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info >= (3, 15):
        pytest.skip("TensorRT-RTX has no wheel for this platform; x86-64 Linux has one")
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


@pytest.fixture(scope="session")
def trt():
    return backend()


@pytest.fixture(scope="session")
def configure(trt):
    """TensorRT-RTX must be told a GPU where there is none; 8.6 is what Orin's 8.7 builds as."""

    def set_capability(config):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)

    return set_capability
