"""A real GPU through each binding that is installed."""

import pytest
from dlm_edge.runtime.gpu.bindings import BindingsDriver
from dlm_edge.runtime.gpu.cuda import CudaDevice
from dlm_edge.runtime.gpu.drivers import PycudaDriver
from dlm_edge.runtime.gpu.replay import ReplayingDevice


@pytest.fixture(params=[BindingsDriver, PycudaDriver], ids=lambda driver: driver.__name__)
def gpu(request):
    if request.param is PycudaDriver:
        pytest.importorskip("pycuda")
    found = ReplayingDevice(CudaDevice(driver=request.param(0)))
    yield found
    found.synchronize()
    found.close()
