"""jetson-stats' attributes as its users read them: powers in mW, clocks in kHz, loads in %."""

import sys
import time
import types

import pytest
from dlm_edge.jetson.sensors.jtop_client import Jtop, read_jtop
from dlm_edge.runtime.errors import DeviceError
from waiting import wait


class Board:
    power = {  # noqa: RUF012
        "rail": {"VDD_CPU_GPU_CV": {"volt": 5056, "curr": 104, "power": 525}, "OTHER": {}},
        "tot": {"name": "VDD_IN", "volt": 5064, "curr": 684, "power": 3463},
    }
    gpu = {"gpu": {"status": {"load": 41.5}, "freq": {"cur": 918000}}}  # noqa: RUF012
    temperature = {  # noqa: RUF012
        "tj": {"temp": 47.5, "online": True},
        "cv0": {"temp": -256, "online": False},
    }


def test_attributes_become_sensors():
    found = {name: (value.unit, value.value) for name, value in read_jtop(Board()).items()}
    assert found == {
        "VDD_CPU_GPU_CV": ("W", 0.525),
        "VDD_IN": ("W", 3.463),
        "gpu load": ("%", 41.5),
        "gpu clock": ("MHz", 918.0),
        "tj": ("°C", 47.5),
    }


def test_a_total_that_is_only_a_sum_is_no_rail():
    board = Board()
    board.power = {**Board.power, "tot": {"power": 525, "avg": 525}}
    assert [name for name, value in read_jtop(board).items() if value.unit == "W"] == [
        "VDD_CPU_GPU_CV"
    ]


class Client(Board):
    """What `jtop.jtop` is, as far as its documentation goes."""

    fails = False

    def __init__(self, interval):
        self.open = True

    def start(self):
        if self.fails:
            raise RuntimeError("mismatch version")

    def ok(self):
        time.sleep(0.01)
        return self.open

    def close(self):
        self.open = False


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("jtop")
    module.jtop = Client
    monkeypatch.setitem(sys.modules, "jtop", module)
    return module


def test_the_service_is_read_until_stopped(package):
    heard = []
    source = Jtop(lambda when, found: heard.append(found), 20.0)
    wait(lambda: len(heard) > 1)
    source.stop()
    assert heard[0]["gpu load"].value == 41.5
    assert source.lost is None


def test_a_service_that_does_not_answer_is_one_line(package, monkeypatch):
    monkeypatch.setattr(Client, "fails", True)
    with pytest.raises(DeviceError, match="systemctl start jtop"):
        Jtop(lambda when, found: None, 20.0)


def test_without_the_package_it_is_named_and_not_demanded(monkeypatch):
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(DeviceError, match="which this project does not install"):
        Jtop(lambda when, found: None, 20.0)
