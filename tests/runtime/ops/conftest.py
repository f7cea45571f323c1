"""The devices that kernels are tested on: always the emulation, a real GPU with `-m gpu`."""

import pytest
from dlm_edge.runtime.gpu.cuda import CudaDevice
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from emulation.device import EmulatedDevice


@pytest.fixture(scope="module", params=["emulation", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "emulation":
        yield EmulatedDevice()
        return
    gpu = CudaDevice()
    yield gpu
    gpu.close()


@pytest.fixture(scope="module")
def cuda(device):
    """Ops that report every step at once."""
    return CudaOps(device, run_ahead=False)
