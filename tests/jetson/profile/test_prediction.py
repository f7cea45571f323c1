"""Which machine a measurement is compared with, and which of the forecast's times."""

import pytest
from dlm_edge.jetson.profile.prediction import add_prediction, compare_with_forecast
from dlm_edge.runtime.errors import ConfigError

PLAN = {
    "memory": {},
    "graphs": [
        {"graph": "denoise", "dims": {"rows": 32, "context": 128}, "step_ms": 2.0,
         "step_ms_uncaptured": 3.0, "outside_ms": 0.5, "tokens_per_s": 480.0,
         "watts": None, "joules_per_token": None},
    ],
}  # fmt: skip


def measured(**machine):
    return {
        "engine": {"name": "tensorrt", "threads": 1},
        "machine": machine,
        "memory": {},
        "runs": [{"nfe": 4}],
        "summary": {
            "figures": {
                "tokens_per_nfe": {"count": 1, "median": 1.0}, "tokens_per_s": {"median": 400.0},
            },
            "phases": [
                {"phase": "denoise", "graph": "denoise",
                 "dims": {"rows": 32, "context": 128}, "count": 4, "median": 3.3}
            ],
            "stages_ms": {"sampling": {"median": 1.0}, "host": {"median": 1.0}},
        },
    }  # fmt: skip


def test_a_gpu_that_is_no_board_is_not_compared_with_the_cpu():
    with pytest.raises(ConfigError, match="name a --target"):
        add_prediction(measured(target="host", power_mode=None), None, target=None, mode=None)


@pytest.mark.parametrize("mode", ["mode 9", None])
def test_a_power_mode_that_is_not_known_is_asked_for(mode):
    record = measured(target="orin-nano", power_mode=mode)
    with pytest.raises(ConfigError, match="give --mode, one of 7w, 15w, 25w, maxn-super"):
        add_prediction(record, None, target=None, mode=None)


def test_settled_times_are_compared_with_the_step_that_is_not_captured():
    record = measured(target="orin-nano", power_mode="25W")
    steps = {
        settled: {
            row["quantity"]: row["predicted"]
            for row in compare_with_forecast(record | {"stages_settled": settled}, PLAN)
            if row["quantity"].startswith("step")
        }
        for settled in (True, False)
    }
    name = "step, rows 32, context 128"
    assert steps[True] == {f"{name}, not captured": 3.0}
    assert steps[False] == {name: 2.0, f"{name}, not captured": 3.0}


def test_every_row_is_measured_over_predicted():
    memory = {
        "weights": 10.0, "kv": 2.0, "activations": 3.0, "context": 160.0, "runtime": 50.0,
        "total": 225.0,
    }  # fmt: skip
    graph = {**PLAN["graphs"][0], "watts": 8.0, "joules_per_token": 0.02}
    record = measured(target="orin-nano", power_mode="25W") | {
        "energy": {"watts": 6.0, "tokens_per_joule": 40.0},
        "memory": {
            "peak_mib": 130.0,
            "parts": [
                {"name": "interpreter and packages", "mib": 30.0},
                {"name": "bundle and tokenizer", "mib": 10.0},
                {"name": "engine's library", "mib": 20.0},
                {"name": "weights and session", "mib": 30.0},
                {"name": "buffers and activations", "mib": 4.0},
            ],
        },
    }
    rows = {
        row["quantity"]: (row["predicted"], row["measured"], row["ratio"])
        for row in compare_with_forecast(record, {"memory": memory, "graphs": [graph]})
    }
    assert rows["step, rows 32, context 128"] == (2.0, 3.3, 1.65)
    # Sampling and host, 2 ms per text of 4 runs.
    assert rows["sampling and host, per run"] == (0.5, 0.5, 1.0)
    assert rows["tokens per second"] == (480.0, 400.0, 0.8333)
    assert rows["tokens per joule"] == (50.0, 40.0, 0.8)
    assert rows["power while running"] == (8.0, 6.0, 0.75)
    assert rows["memory: runtime and weights"] == (60.0, 90.0, 1.5)
    assert rows["memory: activations and kv"] == (5.0, 4.0, 0.8)
    # A context of the GPU is not resident in the process.
    assert rows["memory: all, resident"] == (65.0, 130.0, 2.0)
