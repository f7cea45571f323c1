import json
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from dlm_edge.jetson.forecast import host, host_probe
from dlm_edge.jetson.forecast.host import host_rates
from dlm_edge.jetson.forecast.machines import Cpu
from dlm_edge.jetson.forecast.probe_graphs import Op, onnx_bytes
from dlm_edge.jetson.targets import TARGETS
from dlm_edge.runtime.cache import cache_root
from onnx.reference import ReferenceEvaluator
from round_rates import RATES


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements; the machine is one of round numbers."""
    calls = []

    def measure(threads):
        calls.append(threads)
        return RATES

    monkeypatch.setattr(host, "measure", measure)
    for path in cache_root().glob("host-*"):
        path.unlink()
    yield calls
    for path in cache_root().glob("host-*"):
        path.unlink()


def test_a_machine_is_measured_once_and_then_remembered(measured):
    lines = []
    assert host_rates(1, lines.append) == RATES
    assert host_rates(1, lines.append) == RATES
    assert measured == [1]
    (line,) = lines
    assert "once" in line
    assert host_rates(2) == RATES
    assert host_rates(1, again=True) == RATES
    assert measured == [1, 2, 1]


def test_crowded_figures_of_several_threads_are_measured_again_and_the_better_ones_kept(
    measured, monkeypatch
):
    shares = [0.4, 0.6, 0.01]

    def measure(threads):
        return replace(RATES, threads=threads, waited_share=shares.pop(0))

    monkeypatch.setattr(host, "measure", measure)
    lines = []
    assert host_rates(2).waited_share == 0.4
    assert host_rates(2, lines.append).waited_share == 0.4
    assert "again, for other programs ran" in lines[0]
    assert host_rates(2).waited_share == 0.01
    # One thread is measured in CPU time.
    assert not replace(RATES, threads=1, waited_share=0.9).crowded


def test_a_plan_from_crowded_figures_says_so():
    crowded = replace(RATES, threads=2, waited_share=0.4)
    (line,) = [text for text in Cpu(TARGETS["host"], crowded).assumptions if "40%" in text]
    assert "other programs ran" in line


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": 1, "unknown": 2}'])
def test_damaged_figures_are_measured_again(measured, content):
    host_rates(1)
    (path,) = cache_root().glob("host-*.json")
    path.write_text(content)
    assert host_rates(1) == RATES
    assert measured == [1, 1]
    assert json.loads(path.read_text("utf-8")) == json.loads(json.dumps(asdict(RATES)))


@pytest.fixture
def hasty(monkeypatch):
    """The micro-benchmark with small probes."""
    for name, value in (
        ("ROWS", (1, 4)),
        ("INNER", 8),
        ("COLUMNS", 16),
        ("FOOTPRINTS_MIB", (0, 0)),
        ("KEYS", 6),
        ("ITEMS", (2048, 4096)),
        ("SECONDS", 0.0),
    ):
        monkeypatch.setattr(host_probe, name, value)


def test_every_probe_runs_and_takes_time(hasty, monkeypatch):
    monkeypatch.setattr(host_probe, "resident_mib", lambda threads: 50.0)
    rates = host.measure(1)
    assert (rates.rows, rates.items, rates.threads) == ((1, 4), (2048, 4096), 1)
    assert np.shape(rates.product_macs_per_s) == (2, 2)
    for name in (
        "product_macs_per_s",
        "integer_macs_per_s",
        "attention_macs_per_s",
        "pointwise_s",
        "costly_s",
        "move_s",
    ):
        assert np.all(np.array(getattr(rates, name)) > 0), name
    assert rates.dispatch_s > 0
    assert min(rates.sample_row_s, rates.sample_item_s, rates.step_s) >= 0


def test_a_fresh_process_with_the_engine_open_has_some_memory():
    assert 20 < host_probe.resident_mib(1) < 2000


def test_a_probe_is_the_graph_it_says():
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    ops = [
        Op(name="MatMul", inputs=("x", "w"), outputs=("y",)),
        Op(name="Transpose", inputs=("y",), outputs=("z",), attributes={"perm": (1, 0)}),
        Op(name="Softmax", inputs=("z",), outputs=("s",), attributes={"axis": 0}),
    ]
    data = onnx_bytes(ops, {"x": ("rows", 3)}, {"s": (4, "rows")}, {"w": weight})
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    x = np.ones((2, 3), np.float32)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    powers = np.exp((x @ weight).T - (x @ weight).T.max(axis=0))
    assert np.allclose(found, powers / powers.sum(axis=0))


class Clock:
    """Stands for `time`: moved on by hand, and seen in whole ticks."""

    def __init__(self, tick=0.0):
        self.now, self.tick = 0.0, tick

    def perf_counter(self):
        return self.now

    def thread_time(self):
        return self.now // self.tick * self.tick if self.tick else self.now


def test_the_shortest_run_is_what_counts(monkeypatch):
    clock, naps = Clock(), iter([0, 3, 1, 2, 3])

    def run():
        clock.now += next(naps, 5)

    monkeypatch.setattr(host_probe, "time", clock)
    assert host_probe.best_seconds(run, 1, 0.0) == 1


def test_runs_too_short_for_the_clock_are_timed_together(monkeypatch):
    clock = Clock(tick=8.0)

    def run():
        clock.now += 0.25

    monkeypatch.setattr(host_probe, "time", clock)
    assert host_probe.best_seconds(run, 1, 0.0) == 0.25
