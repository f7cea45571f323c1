import re
import time

import pytest
from dlm_edge.jetson.sensors.kernel import find_sensors
from dlm_edge.jetson.sensors.sampler import Sampler, by_rate
from dlm_edge.runtime.errors import ConfigError, DeviceError
from fake_board import INA3221, make_board, write
from waiting import wait


def num_values(sampler, name):
    return len(sampler.series.columns[name].values) if name in sampler.series.columns else 0


def record(sampler, *ready):
    """Records until each of these has come true, one after the other."""
    zero = time.perf_counter()
    sampler.start()
    for condition in ready:
        wait(condition)
    sampler.stop()
    return sampler.to_json(zero)


def test_every_sensor_becomes_a_column_over_time(board):
    sampler = Sampler("sysfs", 50, root=board)
    found = record(sampler, lambda: num_values(sampler, "VDD_IN") > 5)
    column = found["columns"]["VDD_IN"]
    assert column["unit"] == "W"
    assert column["times"] == sorted(column["times"])
    assert set(column["values"]) == {round(5064 * 684 * 1e-6, 4)}
    assert {"resident", "gpu load", "gpu clock", "tj", "system free"} <= found["columns"].keys()
    # What changes slowly is read less often.
    assert len(found["columns"]["tj"]["values"]) < len(column["values"])
    assert found["missing"] == []
    assert found["lost"] == {}


def test_a_sensor_that_vanishes_is_named_and_what_it_said_is_kept(board):
    def unplug():
        if num_values(sampler, "VDD_IN") > 2:
            write(board, f"{INA3221}/curr1_input", "")
        return bool(sampler.lost)

    sampler = Sampler("sysfs", 50, root=board)
    found = record(
        sampler, unplug, lambda: num_values(sampler, "VDD_SOC") > num_values(sampler, "VDD_IN")
    )
    assert list(found["lost"]) == ["VDD_IN"]
    assert re.match(r"gone after \d+\.\d s: ", found["lost"]["VDD_IN"])
    assert len(found["columns"]["VDD_IN"]["values"]) > 2
    assert len(found["columns"]["VDD_SOC"]["values"]) > len(found["columns"]["VDD_IN"]["values"])


def test_a_sensor_that_has_gone_is_asked_no_more(board):
    sampler = Sampler("sysfs", 50, root=board)
    group = [sensor for sensor in sampler._sensors if sensor.name == "VDD_IN"]
    write(board, f"{INA3221}/curr1_input", "")
    sampler._read(group, 1.0)
    said = sampler.lost["VDD_IN"]
    write(board, f"{INA3221}/curr1_input", "684")
    sampler._read(group, 2.0)
    assert group == []
    assert sampler.lost["VDD_IN"] == said
    assert "VDD_IN" not in sampler.series.columns


def test_without_sensors_the_process_is_still_recorded_and_the_lack_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/self").symlink_to("/proc/self")
    sampler = Sampler("auto", 50, root=tmp_path)
    found = record(sampler, lambda: num_values(sampler, "resident"))
    assert "resident" in found["columns"]
    assert any(line.startswith("power") for line in found["missing"])
    assert any("tegrastats" in line for line in found["missing"])


def test_tegrastats_gives_the_power_that_sysfs_hides(tmp_path, monkeypatch):
    line = "RAM 1/2MB CPU [1%@729] GR3D_FREQ 7% gpu@40C VDD_IN 4744mW/6179mW"
    program = write(
        tmp_path, "bin/tegrastats", f'#!/bin/sh\nwhile :; do echo "{line}"; sleep 0.05; done\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    sampler = Sampler("auto", 20, root=make_board(tmp_path / "board", rails=False))
    # Two threads: either may be the first to have read something.
    found = record(
        sampler, lambda: num_values(sampler, "VDD_IN"), lambda: num_values(sampler, "gpu load")
    )
    assert found["sources"] == ["sysfs", "tegrastats"]
    assert found["columns"]["VDD_IN"]["values"][0] == 4.744
    # sysfs is the better source for what both have.
    assert set(found["columns"]["gpu load"]["values"]) == {99.5}
    assert found["missing"] == []


def test_what_the_thread_costs_is_its_own_time_in_per_cent_of_a_core(board):
    sampler = Sampler("sysfs", 50, root=board)
    record(sampler)
    sampler._begin, sampler._end, sampler._cpu_seconds = 10.0, 14.0, 0.03
    assert sampler.to_json(10.0)["cost_percent_of_core"] == 0.75
    sampler._end = 10.0  # a clock that saw no time pass
    assert sampler.to_json(10.0)["cost_percent_of_core"] > 0


def test_what_changes_slowly_is_read_less_often_and_what_belongs_together_together(board):
    groups = by_rate(find_sensors(board), 50)
    assert {sensor.kind for sensor in groups[1]} == {"power"}
    assert {"gpu load", "gpu clock"} <= {sensor.name for sensor in groups[3]}
    assert {sensor.kind for sensor in groups[13]} == {"temperature", "throttle", "events", "memory"}
    assert [len(group) for group in by_rate(find_sensors(board), 10).values()] == [6, 9]


@pytest.mark.parametrize("rate", [0, 9.9, 51])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ConfigError, match="from 10 to 50"):
        Sampler("auto", rate)


def test_an_unknown_source_lists_those_there_are():
    with pytest.raises(ConfigError, match="auto, sysfs, tegrastats, jtop, none"):
        Sampler("magic")


@pytest.mark.parametrize("source", ["tegrastats", "jtop"])
def test_a_source_asked_for_by_name_must_be_there(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"--sensors auto|comes with JetPack"):
        Sampler(source, root=tmp_path).start()
