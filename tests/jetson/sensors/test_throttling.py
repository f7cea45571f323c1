import pytest
from dlm_edge.jetson.sensors.series import Series
from dlm_edge.jetson.sensors.throttling import crowding, foreign, throttling, waited_seconds
from fake_board import write


def busy(clock, load=99.0):
    series = Series()
    for step in range(20):
        series.add("gpu load", "load", "%", step * 0.1, load)
        series.add("gpu clock", "clock", "MHz", step * 0.1, clock)
        series.add("gpu-throttle-alert", "throttle", "", step * 0.1, 0.0)
        series.add("oc3_event_cnt", "events", "", step * 0.1, 4.0)
    return series


def test_a_busy_gpu_at_its_highest_clock_is_not_throttled(board):
    assert throttling(busy(918.0), 0, 2, root=board) == []


def test_a_busy_gpu_below_its_highest_clock_is(board):
    (line,) = throttling(busy(612.0), 0, 2, root=board)
    assert "612 MHz" in line
    assert "918 MHz" in line


def test_a_busy_gpu_just_below_its_highest_clock_is_not(board):
    assert throttling(busy(890.0), 0, 2, root=board) == []


def test_load_and_clock_may_be_read_at_different_times(board):
    # Busy in the second half at the highest clock, and clocked down while idle before.
    series = Series()
    for step in range(40):
        series.add("gpu clock", "clock", "MHz", step * 0.05, 306.0 if step < 20 else 918.0)
    for step in range(4):
        series.add("gpu load", "load", "%", 0.25 + step * 0.5, 2.0 if step < 2 else 99.0)
    assert throttling(series, 0, 2, root=board) == []
    series.columns["gpu clock"].values[20:] = [612.0] * 20
    (line,) = throttling(series, 0, 2, root=board)
    assert "busy at 612 MHz" in line


def test_an_idle_gpu_may_clock_down(board):
    assert throttling(busy(306.0, load=5.0), 0, 2, root=board) == []


def test_an_alert_and_a_rising_counter_are_named(board):
    series = busy(918.0)
    series.columns["gpu-throttle-alert"].values[10:] = [1.0] * 10
    series.columns["oc3_event_cnt"].values[15:] = [6.0] * 5
    alert, events = throttling(series, 0, 2, root=board)
    assert "gpu-throttle-alert was raised in 50%" in alert
    assert events == "oc3_event_cnt counted 2 peak over-current events"
    # Events before the window do not count.
    assert throttling(busy(918.0), 1.6, 2, root=board) == []


@pytest.mark.parametrize(("waited", "lines"), [(None, 0), (0.01, 0), (0.7, 1)])
def test_waiting_for_a_cpu_is_told_once_it_matters(waited, lines):
    found = crowding(waited, 1.0)
    assert len(found) == lines
    assert not found or "70%" in found[0]


def test_the_scheduler_counts_nanoseconds(tmp_path):
    assert waited_seconds(tmp_path) is None
    write(tmp_path, "proc/self/schedstat", "582073 2500000000 11\n")
    assert waited_seconds(tmp_path) == 2.5


@pytest.mark.parametrize(
    ("made_for", "machine", "lines"),
    [("cpu", "host", 0), ("orin-nano", "orin-nano", 0), ("host", "orin-nano", 0),
     ("orin-nano", "host", 1), ("orin-nano", "orin-nx", 1)],
)  # fmt: skip
def test_a_bundle_made_for_another_board_is_told(made_for, machine, lines):
    assert len(foreign(made_for, machine)) == lines
