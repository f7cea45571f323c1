"""Memory, kernels and captured steps on a real GPU."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.primitives import check_kernels

pytestmark = pytest.mark.gpu


def test_every_kernel_gives_what_numpy_gives(gpu):
    for found in check_kernels(CudaOps(gpu)):
        assert found["ok"], found


def test_memory_goes_both_ways(gpu):
    values = np.random.default_rng(0).normal(size=(100, 33)).astype(np.float32)
    one, other = (gpu.empty(values.shape, np.float32) for _ in range(2))
    gpu.upload(one, values)
    gpu.copy(other, one)
    gpu.zero(one)
    assert np.array_equal(gpu.download(other), values)
    assert not gpu.download(one).any()
    free, total = gpu.memory()
    assert 0 < free < total


def test_a_captured_step_does_what_its_calls_did(gpu):
    one, two, three = (gpu.empty((1000,), np.int32) for _ in range(3))
    for turn in range(4):
        gpu.upload(one, np.full(1000, turn))
        gpu.copy(two, one)
        gpu.copy(three, two)
        gpu.flush(repeats=True)
        assert (gpu.download(three) == turn).all()
    assert gpu.num_captured == 1
    assert gpu.num_replayed == 3


def test_more_memory_than_there_is_is_one_line(gpu):
    with pytest.raises(DeviceError, match="left in one piece"):
        gpu.empty((1 << 50,), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_the_sanitizer_finds_nothing(tool):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("no compute-sanitizer here")
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m",
         "dlm_edge.benchmarks.gpu_kernels"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
