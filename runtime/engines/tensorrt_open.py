"""Opens the TensorRT backend: module, GPU, kernels, then plans, the quickest to fail first.

Most machines fail at the first: what only the others need is imported behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..bundle.bundle import Bundle
from ..errors import EngineError
from ..gpu.device import Device
from ..gpu.facts import GpuFacts, read_gpu
from .tensorrt_build import BuildSettings, import_tensorrt
from .tensorrt_plans import made_for_cpus

if TYPE_CHECKING:
    from .tensorrt import TensorRtEngines


def at_hand() -> tuple[Any, GpuFacts]:
    """Returns TensorRT and the GPU.

    Raises:
        EngineError: No TensorRT, or one that is too old.
        DeviceError: No driver or no GPU.
    """
    return import_tensorrt(), read_gpu()


def make_device(note: Callable[[str], None]) -> Device:
    """Opens the first GPU; DeviceError without one, or without a binding."""
    from ..gpu.cuda import CudaDevice

    return CudaDevice(note=note)


def open_tensorrt(
    bundle: Bundle,
    *,
    reason: str,
    settings: BuildSettings | None = None,
    note: Callable[[str], None] = lambda line: None,
    report: Callable[[float, str], None] = lambda fraction, phase: None,
) -> TensorRtEngines:
    """Makes a bundle's graphs executable with TensorRT, building plans that the cache lacks.

    Args:
        note: Gets a line when kernels are compiled, a plan is damaged or waited for, or steps
            cannot be captured.

    Raises:
        EngineError: TensorRT is missing, or cannot build or load a plan.
        DeviceError: The GPU, a binding or NVRTC is missing, or memory does not suffice.
    """
    trt, gpu = at_hand()
    unfit = made_for_cpus(bundle.manifest)
    if unfit is not None:  # before a minute of compiling
        raise EngineError(unfit)
    from ..gpu.replay import ReplayingDevice
    from ..ops.cuda.ops import CudaOps
    from ..ops.primitives import PRIMITIVES
    from .tensorrt import TensorRtEngines

    device = ReplayingDevice(make_device(note), note)
    try:
        ops = CudaOps(device)
        for primitive, _ in PRIMITIVES:  # fails before minutes of building, if kernels do
            ops.bind(primitive)
        return TensorRtEngines(
            trt,
            bundle,
            device,
            gpu,
            settings=settings,
            reason=reason,
            note=note,
            report=report,
        )
    except BaseException:  # Ctrl-C during a build as well
        device.close()
        raise
