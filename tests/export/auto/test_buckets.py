from dataclasses import replace

import pytest
from dlm_edge.export.auto.candidates import best_buckets, text_rate
from dlm_edge.jetson.forecast.forecast import Forecast, GraphForecast
from dlm_edge.jetson.forecast.memory import MemoryForecast
from toy_bundle import toy_spec

PART = GraphForecast(
    graph="denoise", dims={}, purpose="denoise", block=4, precision="fp32", bytes=0,
    weight_bytes=0, macs=0, operations=0, num_kernels=0, bound="memory", activations_mib=0.0,
    step_ms=1.0, step_ms_uncaptured=1.0, outside_ms=0.0, tokens_per_s=0.0,
    tokens_per_s_uncaptured=0.0, watts=None, joules_per_token=None,
)  # fmt: skip
MEMORY = MemoryForecast(
    weights=1.0, kv=1.0, activations=1.0, context=0.0, runtime=1.0, available=None
)


def test_a_texts_rate_is_its_positions_over_the_time_of_its_runs():
    times = {toy_spec(4, 4): 2.0, toy_spec(4, 8): 5.0}
    forecast = Forecast(
        target="host",
        mode=None,
        tokens_per_nfe=1.0,
        graphs={
            spec.key: replace(PART, step_ms=taken - 1.0, outside_ms=1.0)
            for spec, taken in times.items()
        },
        memory=MEMORY,
        warnings=(),
        assumptions=(),
    )
    runs = [(toy_spec(4, 4), 8.0), (toy_spec(4, 8), 4.0)]
    assert text_rate(forecast, runs, 12) == pytest.approx(12e3 / (8 * 2 + 4 * 5))


def test_buckets_that_make_no_difference_are_left_out():
    def even(kept):
        return 100.0 + 1.0 * (4 in kept)

    assert best_buckets((4, 8, 16), even) == ((16,), 100.0)

    def steep(kept):
        return 200.0 if 8 in kept else 150.0 if 4 in kept else 100.0

    assert best_buckets((4, 8, 16), steep) == ((8, 16), 200.0)


def test_a_graph_without_a_cache_has_no_buckets():
    assert best_buckets((), lambda kept: 200.0) == ((), 200.0)
