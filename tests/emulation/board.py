"""A machine with TensorRT and a GPU, as our code sees it: stand-in runtime, emulated device.

Only where each comes from is replaced; everything from `open_engines` on is ours.
"""

from dataclasses import dataclass

from dlm_edge.runtime.cli import plans as cli_plans
from dlm_edge.runtime.engines import tensorrt_open, tensorrt_plans
from dlm_edge.runtime.engines.tensorrt_build import build_plan as real_build_plan
from dlm_edge.runtime.gpu.facts import GpuFacts
from emulation.device import EmulatedDevice
from emulation.tensorrt import FakeTensorrt, build_plan

GPU = GpuFacts(name="Orin", compute_capability="8.7", driver_version=12060, power_mode="0002")


@dataclass
class Board:
    trt: FakeTensorrt
    device: EmulatedDevice


def make_board(monkeypatch, *, builder=None, configure=None, **device):
    """Puts the stand-ins in place; `builder` is a real TensorRT that builds the plans."""
    gpu = EmulatedDevice(**device)
    trt = FakeTensorrt(gpu, builder=builder)

    def build(module, onnx_path, specs, settings, **keys):
        plan = real_build_plan(builder, onnx_path, specs, settings,
                               **{**keys, "configure": configure})  # fmt: skip
        module.learn(plan.data, onnx_path, specs)
        return plan

    monkeypatch.setattr(tensorrt_plans, "build_plan", build if builder else build_plan)
    for module in (tensorrt_open, cli_plans):
        monkeypatch.setattr(module, "import_tensorrt", lambda: trt)
        monkeypatch.setattr(module, "read_gpu", lambda: GPU)
    monkeypatch.setattr(tensorrt_open, "make_device", lambda note: gpu)
    return Board(trt, gpu)
