"""The arithmetic of the int8 benchmark; its figures are not asserted."""

import itertools

import numpy as np
import pytest
from dlm_edge.benchmarks.int8_step import example, interleave, make_graphs, open_session, summarise

TINY = {"dim": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}


def test_only_the_second_call_of_a_round_is_timed():
    now = itertools.count()
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("fp32", "int8")}
    seconds = interleave(runs, 3, lambda: float(next(now)))
    assert calls == ["fp32", "fp32", "int8", "int8"] * 3
    assert seconds == {"fp32": [1.0] * 3, "int8": [1.0] * 3}


def test_ratios_are_medians_within_rounds():
    rows = summarise({"fp32": [4.0, 6.0, 8.0], "int8": [2.0, 2.0, 2.0]}, "fp32")
    assert rows["int8"]["ratio"] == 3.0
    assert rows["int8"]["ratio_range"] == (2.0, 4.0)
    assert rows["int8"]["ms"] == 2000.0
    assert rows["fp32"]["ratio"] == 1.0


@pytest.mark.slow
def test_graphs_run_and_differ_by_rounding_only():
    graphs, specs = make_graphs(TINY)
    inputs = example(specs, 8, TINY["vocab_size"])
    exact = open_session(graphs["fp32"], 1).run(["logits"], inputs)[0]
    found = open_session(graphs["int8"], 1).run(["logits"], inputs)[0]
    assert 0 < np.abs(found - exact).max() < 0.2 * np.abs(exact).max()
