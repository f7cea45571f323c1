import pytest
from dlm_edge.jetson.profile.measured import run_energy
from dlm_edge.jetson.sensors.series import Series


def ramp(series, name="VDD_IN", kind="power"):
    for step in range(11):
        series.add(name, kind, "W", step / 10, float(step))
    return series


def test_the_integral_of_a_ramp_is_its_triangle():
    column = ramp(Series()).columns["VDD_IN"]
    assert column.integral(0.0, 1.0) == pytest.approx(5.0)
    # Beyond the ends the value is held: half a second at 10.
    assert column.integral(0.0, 1.5) == pytest.approx(5.0 + 5.0)
    assert column.integral(2.0, 3.0) is None


def test_a_constant_gives_its_value_times_the_time_whatever_the_window():
    series = Series()
    for step in range(100):
        series.add("VDD_IN", "power", "W", step * 0.02, 7.0)
    assert series.joules(("VDD_IN",), 0.501, 1.499) == pytest.approx(7 * 0.998)


def test_energy_of_several_rails_needs_all_of_them():
    series = ramp(ramp(Series()), "VDD_SOC")
    assert series.joules(("VDD_IN", "VDD_SOC"), 0.0, 1.0) == pytest.approx(10.0)
    assert series.joules(("VDD_IN", "OTHER"), 0.0, 1.0) is None
    assert series.joules((), 0.0, 1.0) is None


def test_figures_are_of_the_window_only():
    found = ramp(Series()).figures(0.45, 1.0)
    assert found["VDD_IN"]["low"] == 5
    assert found["VDD_IN"]["high"] == 10
    assert found["VDD_IN"]["mean"] == pytest.approx(7.5)


class Run:
    num_tokens = 60


def test_tokens_per_joule_are_tokens_over_energy_and_idle_is_taken_off():
    series = Series()
    for step in range(300):
        now = step * 0.01
        series.add("VDD_IN", "power", "W", now, 4.0 if now < 1 else 10.0)
    energy = run_energy(series, [Run(), Run()], (1.0, 2.99), (0.0, 0.99))
    assert energy["watts"] == pytest.approx(10)
    assert energy["idle_watts"] == pytest.approx(4)
    assert energy["tokens_per_joule"] == pytest.approx(120 / 19.9, rel=1e-3)
    assert energy["tokens_per_joule_above_idle"] == pytest.approx(120 / (6 * 1.99), rel=1e-3)


def test_without_a_rail_there_is_no_energy():
    assert run_energy(Series(), [Run()], (0.0, 1.0), None) is None
