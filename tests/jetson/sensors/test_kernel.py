import pytest
from dlm_edge.jetson.sensors.kernel import find_sensors, gpu_clock_limit, missing_kinds
from dlm_edge.jetson.sensors.power import find_rails, total_rails
from fake_board import EVENTS, INA3221, make_board, write


def readings(root):
    return {sensor.name: sensor.read() for sensor in find_sensors(root)}


def test_a_board_is_read_by_label_and_unit(board):
    found = readings(board)
    assert found["VDD_IN"] == pytest.approx(5064 * 684 * 1e-6)
    assert found["VDD_CPU_GPU_CV"] == pytest.approx(5056 * 104 * 1e-6)
    assert found["gpu load"] == pytest.approx(99.5)
    assert found["gpu clock"] == pytest.approx(918)
    assert found["cpu clock"] == pytest.approx(1344)
    assert found["tj"] == pytest.approx(47.0)
    assert found["system free"] == pytest.approx(4612096 / 1024)
    assert found["oc3_event_cnt"] == 4
    assert found["gpu-throttle-alert"] == 0


def test_roots_memory_clock_is_in_megahertz_where_it_can_be_read(board):
    write(board, "sys/kernel/debug/bpmp/debug/clk/emc/rate", "3199000000\n")
    assert readings(board)["emc clock"] == pytest.approx(3199)


def test_what_is_no_rail_no_zone_and_no_alert_is_left_out(board):
    write(board, f"{INA3221}/in2_label", "NC\n")
    names = [sensor.name for sensor in find_sensors(board)]
    assert "NC" not in names
    assert "sum of shunt voltages" not in names
    assert "cv0" not in names
    assert "pwm-fan" not in names
    assert len(names) == len(set(names))


def test_the_number_of_the_monitor_may_change(tmp_path):
    root = make_board(tmp_path)
    (root / INA3221).rename((root / INA3221).parent / "hwmon4")
    assert [rail.name for rail in find_rails(root)] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


def test_a_monitor_is_found_by_its_name_where_the_driver_has_no_folder(tmp_path):
    root = make_board(tmp_path, rails=False)
    write(root, "sys/class/hwmon/hwmon2/name", "ina3221\n")
    write(root, "sys/class/hwmon/hwmon0/name", "nvme\n")
    for number in (0, 2):
        write(root, f"sys/class/hwmon/hwmon{number}/in1_label", f"RAIL{number}\n")
        write(root, f"sys/class/hwmon/hwmon{number}/in1_input", "5000\n")
        write(root, f"sys/class/hwmon/hwmon{number}/curr1_input", "1000\n")
    (rail,) = find_rails(root)
    assert (rail.name, rail.read()) == ("RAIL2", 5.0)


def test_jetpack_7_has_the_gpu_elsewhere(board):
    (board / "sys/devices/platform/gpu.0/load").unlink()
    write(board, "sys/devices/platform/bus@0/17000000.gpu/load", "500\n")
    loads = [sensor for sensor in find_sensors(board) if sensor.kind == "load"]
    assert [(sensor.name, sensor.read()) for sensor in loads] == [("gpu load", 50.0)]


def test_the_module_draws_vdd_in_or_the_sum_of_its_rails():
    assert total_rails(["VDD_SOC", "VDD_IN"]) == ("VDD_IN",)
    assert total_rails(["VDD_GPU_SOC", "VDD_CPU_CV"]) == ("VDD_GPU_SOC", "VDD_CPU_CV")


def test_a_machine_without_sensors_says_what_it_lacks(tmp_path):
    found = find_sensors(tmp_path)
    assert found == []
    assert [line.partition(":")[0] for line in missing_kinds(found)] == [
        "power", "GPU load and clock", "temperature", "throttling",
    ]  # fmt: skip
    assert gpu_clock_limit(tmp_path) is None


def test_a_board_lacks_nothing(board):
    assert missing_kinds(find_sensors(board)) == []


def test_an_unreadable_counter_is_not_a_sensor(board):
    write(board, f"{EVENTS}/oc2_event_cnt", "not a number\n")
    assert "oc2_event_cnt" not in readings(board)
