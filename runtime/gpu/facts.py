"""What a plan's name must know of the GPU: read from the driver itself, without any package.

Building a plan needs TensorRT alone, so no CUDA binding is asked for here.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeviceError

DRIVER_LIBRARY = "libcuda.so.1"
POWER_MODE_FILE = Path("/var/lib/nvpmodel/status")
"""A Jetson's power mode, for example `pmode:0002`; other machines have no such file."""
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """The first GPU, as far as a plan depends on it."""

    name: str
    compute_capability: str
    """For example 8.7."""
    driver_version: int
    """Highest CUDA version of the driver, 1000 * major + 10 * minor."""
    power_mode: str
    """Of a Jetson, empty elsewhere: kernels are chosen by what they took at its clocks."""


def read_gpu(library: str = DRIVER_LIBRARY, power_mode_file: Path = POWER_MODE_FILE) -> GpuFacts:
    """Asks the driver for its first GPU; raises DeviceError."""
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise DeviceError(
            f"no NVIDIA driver here ({error}): plans are built on the machine that runs them; "
            "--engine onnxruntime needs none"
        ) from error
    _call(driver, "cuInit", ctypes.c_uint(0))
    device = ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(number), ctypes.c_int(attribute), device)
        numbers.append(number.value)
    version = ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    return GpuFacts(
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"{numbers[0]}.{numbers[1]}",
        driver_version=version.value,
        power_mode=_power_mode(power_mode_file),
    )


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(driver, function)(*arguments)
    if status:
        raise DeviceError(
            f"the NVIDIA driver finds no usable GPU ({function} gave {status}): check that nvidia-"
            "smi or, on a Jetson, tegrastats sees it, or use --engine onnxruntime"
        )


def _power_mode(path: Path) -> str:
    try:
        found = re.search(r"pmode:(\w+)", path.read_text("ascii", "replace"))
    except OSError:
        return ""
    return found[1] if found else ""
