import numpy as np
import pytest
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu import device as module
from dlm_edge.runtime.gpu.device import wait_until
from emulation.device import EmulatedDevice


def test_rows_are_views_of_the_same_memory():
    device = EmulatedDevice()
    whole = device.empty((1, 6, 5), np.float16)
    values = np.arange(30).reshape(1, 6, 5).astype(np.float16)
    device.upload(whole, values)
    part = whole.rows(2, 3, axis=1)
    assert part.shape == (1, 3, 5)
    assert np.array_equal(device.download(part), values[:, 2:5])


def test_waiting_ends_with_an_error_when_no_word_ever_comes(monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    with pytest.raises(DeviceError, match="without reporting progress"):
        wait_until(EmulatedDevice(), lambda: False)


def test_waiting_tells_what_the_device_says(monkeypatch):
    class Failing(EmulatedDevice):
        def synchronize(self):
            raise DeviceError("work on the GPU failed")

    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    with pytest.raises(DeviceError, match="work on the GPU failed"):
        wait_until(Failing(), lambda: False)
