import shutil
import subprocess

import pytest
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu.facts import read_gpu

# A driver with one GPU, as far as it is asked.
SOURCE = r"""
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, "Orin", length); return device != 7;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : 7; return device != 7;
}
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
"""
COMPILER = shutil.which("cc") or shutil.which("gcc")


def driver(folder, status=0):
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    path = folder / "driver.so"
    (folder / "driver.c").write_text(SOURCE.replace("INIT", str(status)))
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-o", path, folder / "driver.c"], check=True, timeout=600
    )
    return str(path)


def test_the_driver_says_what_a_plan_depends_on(tmp_path):
    (tmp_path / "status").write_text("pmode:0002 fmode:quiet\n")
    gpu = read_gpu(driver(tmp_path), tmp_path / "status")
    assert (gpu.name, gpu.compute_capability, gpu.driver_version) == ("Orin", "8.7", 12060)
    assert gpu.power_mode == "0002"


def test_a_machine_that_is_no_jetson_has_no_power_mode(tmp_path):
    assert read_gpu(driver(tmp_path), tmp_path / "none").power_mode == ""


def test_a_driver_without_a_gpu_is_one_line(tmp_path):
    with pytest.raises(DeviceError, match=r"no usable GPU .*cuInit gave 100"):
        read_gpu(driver(tmp_path, status=100))


def test_a_machine_without_a_driver_is_one_line():
    with pytest.raises(DeviceError, match=r"no NVIDIA driver here .*onnxruntime"):
        read_gpu("libno-such-driver.so.1")
