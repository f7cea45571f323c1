"""The emulation itself: it must catch what a GPU would punish."""

import numpy as np
import pytest
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu.compile import OPS
from emulation.device import EmulatedDevice
from emulation.probes import NAMES, probe_source


@pytest.fixture
def probe(tmp_path):
    source = probe_source(OPS, tmp_path)
    return lambda device: device.kernels(source, NAMES)


def launch(device, kernel, shape, dtype, block=64):
    out = device.empty(shape, dtype)
    device.zero(out)
    device.launch(kernel, 1, block, (out.pointer,))
    return device.download(out)


def test_votes_are_those_of_the_own_warp(probe):
    device = EmulatedDevice()
    votes = launch(device, probe(device)["votes"], (64, 2), np.uint32)
    for warp in range(2):
        expected = sum(1 << lane for lane in range(32) if (32 * warp + lane) % 3 == 0)
        assert (votes[32 * warp : 32 * warp + 32, 0] == expected).all()
        assert (votes[32 * warp : 32 * warp + 32, 1] == warp).all()


def test_threads_that_wait_for_ever_end_the_launch(probe):
    device = EmulatedDevice()
    with pytest.raises(DeviceError, match="wait for each other"):
        launch(device, probe(device)["deadlock"], (1,), np.uint32)


def test_a_missing_barrier_shows_in_the_other_order_of_threads(probe):
    found = [
        launch(device, probe(device)["race"], (64,), np.uint32)
        for device in (EmulatedDevice(), EmulatedDevice(downwards=True))
    ]
    assert not np.array_equal(*found)


def test_every_half_becomes_its_float(probe):
    device = EmulatedDevice()
    found = launch(device, probe(device)["halves"], (65536,), np.float32)
    expected = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)


def test_devices_that_launch_at_once_do_not_disturb_each_other(probe):
    devices = [EmulatedDevice(), EmulatedDevice(asynchronous=True)]
    kernels = [probe(device)["votes"] for device in devices]
    wanted = launch(devices[0], kernels[0], (64, 2), np.uint32)
    outs = [devices[1].empty((64, 2), np.uint32) for _ in range(200)]
    for out in outs:  # worked off behind the host's back
        devices[1].launch(kernels[1], 1, 64, (out.pointer,))
    for _ in range(200):
        assert np.array_equal(launch(devices[0], kernels[0], (64, 2), np.uint32), wanted)
    assert all(np.array_equal(devices[1].download(out), wanted) for out in outs)


def test_a_captured_step_runs_when_it_is_replayed():
    device = EmulatedDevice()
    one, other = (device.empty((4,), np.int32) for _ in range(2))
    device.upload(one, np.arange(4))
    device.zero(other)
    step = device.capture(lambda: device.copy(other, one))
    assert not device.download(other).any()
    step.replay()
    assert device.download(other).tolist() == [0, 1, 2, 3]


def test_kernels_are_emulated_as_they_are_without_a_switch_inside():
    """Only ptx.cuh may ask which compiler reads it, and not inside a function."""
    for path in OPS.glob("*/*.cu*"):
        text = path.read_text("utf-8")
        switches = [line for line in text.split("\n") if line.startswith("#if")]
        assert switches == (["#ifdef __CUDACC__"] if path.name == "ptx.cuh" else [])
