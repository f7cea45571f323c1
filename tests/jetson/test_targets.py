import json

import pytest
from dlm_edge.jetson.targets import (
    JETPACKS,
    MODULES,
    TARGETS,
    describe,
    jetpack_lines,
    jetpack_of,
    normal_mode_name,
    target,
)
from dlm_edge.runtime.errors import ConfigError

MODES = [(item, mode) for item in TARGETS.values() for mode in item.modes.values()]


def test_an_unknown_target_is_refused_with_the_list():
    with pytest.raises(ConfigError, match="'moon' is unknown") as caught:
        target("moon")
    assert all(name in str(caught.value) for name in TARGETS)


def test_an_unknown_mode_is_refused_with_the_list():
    with pytest.raises(ConfigError, match="7w, 15w, 25w, maxn-super"):
        target("orin-nano").mode("60w")


def test_a_cpu_has_no_modes():
    assert target("host").mode() is None
    with pytest.raises(ConfigError, match="none"):
        target("cpu").mode("25w")


@pytest.mark.parametrize("name", ["MAXN_SUPER", "maxn super", " Maxn-Super "])
def test_modes_are_found_however_they_are_written(name):
    assert normal_mode_name(name) == "maxn-super"
    mode = target("orin-nano").mode(name)
    assert mode is not None
    assert mode.nvpmodel_id == 2


def test_agx_orins_names_of_modes_are_found():
    mode = target("agx-orin").mode("MODE_15W")
    assert mode is not None
    assert mode.watts == 15


@pytest.mark.parametrize(
    ("name", "mode", "int8_tops", "bandwidth"),
    [
        # NVIDIA's sparse figures of two digits, halved, without the accelerators beside the GPU.
        ("orin-nano", "maxn-super", 67 / 2, 102.4),
        ("orin-nano", "15w", 40 / 2, 68.3),
        ("orin-nano-4gb", "maxn-super", 34 / 2, 51.2),
        ("agx-orin", "maxn", 170 / 2, 204.8),
        ("agx-orin-32gb", "maxn", 108 / 2, 204.8),
    ],
)
def test_rates_follow_from_clocks_as_the_data_sheets_have_them(name, mode, int8_tops, bandwidth):
    found = target(name).mode(mode)
    assert found is not None
    assert found.int8_tops == pytest.approx(int8_tops, rel=0.02)
    assert found.fp16_tflops == pytest.approx(found.int8_tops / 2)
    assert found.bandwidth_gb_s == pytest.approx(bandwidth, rel=0.01)


@pytest.mark.parametrize(("item", "mode"), MODES)
def test_every_mode_is_possible_and_says_where_it_comes_from(item, mode):
    assert mode.source
    assert 2 <= mode.num_sms <= 16
    assert mode.num_sms % 2 == 0
    assert 300 <= mode.gpu_mhz <= 1301
    assert mode.bandwidth_gb_s == pytest.approx(2 * mode.emc_mhz * item.bus_bits / 8000)
    assert mode.watts is None or mode.watts == float(mode.name.split("w")[0])


@pytest.mark.parametrize("item", TARGETS.values())
def test_every_target_has_sources_and_a_default_that_exists(item):
    assert item.sources
    if item.is_gpu:
        assert item.default_mode in item.modes
        assert {"memory_mib", "system_mib", "bus_bits"} <= set(item.sources)
        numbers = [mode.nvpmodel_id for mode in item.modes.values()]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("item", TARGETS.values())
def test_a_target_is_printed_and_written_as_json(item):
    text = describe(item)
    assert item.name in text
    assert all(name in text for name in item.modes)
    assert set(json.loads(json.dumps(item.to_json()))["modes"]) == set(item.modes)


@pytest.mark.parametrize(
    ("l4t", "version"),
    [
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("39.2.1", "7.2.1"),
        ("36.2.0", None),
        ("35.4.1", None),
        ("40.1", None),
    ],
)
def test_a_release_is_the_newest_jetpack_of_its_line(l4t, version):
    found = jetpack_of(l4t)
    assert (found.version if found else None) == version


def test_every_jetpack_says_where_it_comes_from():
    assert all(item.source for item in JETPACKS)
    assert [item.version for item in JETPACKS if not item.orin] == ["7.0", "7.1"]


def test_the_list_has_a_row_per_jetpack_and_sources_on_request():
    lines = jetpack_lines()
    assert len(lines) == 1 + len(JETPACKS)
    assert "6.2.1     36.4.4   3.10    12.6  10.3.0" in "\n".join(lines)
    assert jetpack_lines(sources=True)[-1].endswith(JETPACKS[-1].source)
    assert "deviceQuery" in describe(TARGETS["orin-nano"], sources=True)


def test_every_part_number_is_of_a_target_that_exists():
    assert set(MODULES.values()) == {item.name for item in TARGETS.values() if item.is_gpu}
    assert all(MODULES[item.part_number] == item.name for item in TARGETS.values() if item.is_gpu)
