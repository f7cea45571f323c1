"""One real run of the model that ships, on a faked board."""

import itertools
from types import SimpleNamespace

import pytest
from dlm_edge.jetson.profile import run_record as timed_text_module
from dlm_edge.jetson.profile.profile import ProfileOptions, Profiler
from dlm_edge.jetson.profile.run_record import STAGES, timed_text
from dlm_edge.runtime import generate, text_generation
from dlm_edge.runtime import pipeline as pipeline_module
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.pipeline import Pipeline
from toy_bundle import write_toy


def test_texts_are_those_that_the_pipeline_writes_without_a_profiler(record):
    with Pipeline.load(threads=1) as pipeline:
        for run in record["runs"]:
            prompt = record["settings"]["prompts"][run["prompt"]]
            result = pipeline.generate(
                prompt, max_tokens=40, sample_index=run["sample_index"]
            ).result()
            assert (len(result.token_ids), result.nfe) == (run["num_tokens"], run["nfe"])


def test_stages_of_every_text_add_up_to_its_time(record):
    assert len(record["runs"]) == 4
    for run in record["runs"]:
        assert list(run["stages"]) == list(STAGES)
        assert sum(run["stages"].values()) == pytest.approx(run["total_s"], abs=1e-5)
        assert len(run["steps"]) == run["nfe"]
        assert 0 <= run["first_s"] <= run["first_block_s"]


@pytest.mark.parametrize("prompt", ["", "Once upon a time"])
def test_the_first_block_comes_between_the_first_token_and_the_end(prompt, monkeypatch):
    now = itertools.count()  # a clock that every look at it moves on

    def clock():
        return next(now) / 1024

    for module in (generate, pipeline_module, text_generation, timed_text_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    with Pipeline.load(threads=1) as pipeline:
        begin = clock()
        run = timed_text(pipeline, prompt, max_tokens=40)
        elapsed = clock() - begin
    assert run.num_blocks > 1
    assert 0 < run.first_s < run.first_block_s < elapsed
    assert 0 < run.total_s < elapsed


def test_default_prompts_that_a_bundle_has_no_room_for_are_left_out(tmp_path):
    options = ProfileOptions(
        bundle=write_toy(tmp_path), threads=1, runs=1, max_tokens=4, sensors="none", layers=False
    )
    profiler = Profiler(options)
    profiler.measure()
    found = profiler.finish(complete=True)
    assert found["settings"]["prompts"] == [""]
    assert len(found["runs"]) == 1


def test_settings_that_the_bundle_does_not_take_are_refused(tmp_path):
    options = ProfileOptions(
        bundle=write_toy(tmp_path), threads=1, sensors="none", settings={"block_size": 7}
    )
    profiler = Profiler(options)
    with pytest.raises(ConfigError, match="7"):
        profiler.measure()
    profiler.finish(complete=False)


def test_memory_of_the_engines_profiler_is_not_the_models(record):
    (layers,) = (span for span in record["spans"] if span["name"] == "layers")
    column = record["sensors"]["columns"]["malloc"]
    readings = list(zip(column["times"], column["values"], strict=True))
    # Times are told to a tenth of a millisecond: a reading just there may count or not.
    surely = [value for when, value in readings if when < layers["begin"] - 1e-4]
    perhaps = [value for when, value in readings if when < layers["begin"] + 1e-4]
    assert surely
    assert max(surely) - 0.01 <= record["memory"]["malloc_peak_mib"] <= max(perhaps) + 0.01


def test_memory_parts_lead_from_nothing_to_what_is_resident(record):
    parts = record["memory"]["parts"]
    assert [part["name"] for part in parts] == [
        "interpreter and packages", "bundle and tokenizer", "engine's library",
        "weights and session", "buffers and activations",
    ]  # fmt: skip
    assert sum(part["mib"] for part in parts) == pytest.approx(parts[-1]["resident_mib"], abs=0.1)
    assert record["memory"]["peak_mib"] >= parts[-1]["resident_mib"] - 1
    assert record["memory"]["load_peak_mib"] >= parts[-2]["resident_mib"] - 1
    assert parts[-1]["device_used_mib"] is None
    held = record["memory"]["engine_account_mib"]
    # The engine's buffers are malloc's.
    before = record["sensors"]["columns"]["malloc"]["values"][0]
    assert record["memory"]["malloc_peak_mib"] > before + held["weights"] + held["kv"]
    assert record["memory"]["engine_peak_mib"] == pytest.approx(sum(held.values()), abs=0.02)
    assert held["weights"] == pytest.approx(4.19, abs=0.1)
    # kv: 256 rows x 4 layers x 2 x 4 heads x 64 float32
    assert held["kv"] == pytest.approx(256 * 4 * 2 * 4 * 64 * 4 / 2**20)


def test_layers_are_those_of_the_graph_and_take_their_time_within_the_engines(record):
    layers = record["layers"]
    kinds = {layer["kind"] for layer in layers["layers"]}
    assert "MatMul" in kinds
    assert sum(layer["share"] for layer in layers["layers"]) == pytest.approx(1, abs=0.01)
    assert {layer["calls"] for layer in layers["layers"] if layer["bytes"] > 1 << 20} == {
        layers["nfe"]
    }
    # Calls times their median: at most twice their sum, however they are spread.
    assert 0 < layers["total_ms"] <= 2 * layers["engine_ms"]


def test_power_of_the_faked_board_becomes_tokens_per_joule(record):
    energy = record["energy"]
    assert energy["rails"] == ["VDD_IN"]
    assert energy["watts"] == pytest.approx(5.064 * 0.684, rel=1e-3)
    assert energy["idle_watts"] == pytest.approx(5.064 * 0.684, rel=1e-3)
    tokens = sum(run["num_tokens"] for run in record["runs"])
    # Joules are told to a thousandth, which is more of a short run's.
    assert tokens / energy["tokens_per_joule"] == pytest.approx(energy["joules"], abs=6e-4)


def test_the_machine_is_the_board(record):
    machine = record["machine"]
    assert machine["is_jetson"]
    assert (machine["l4t"], machine["jetpack"]) == ("36.4.7", "6.2.1")
    assert (machine["target"], machine["power_mode"]) == ("orin-nano", "25W")


def test_spans_follow_each_other(record):
    names = [span["name"] for span in record["spans"]]
    assert names == ["idle", "load", "warm-up", "runs", "layers"]
    edges = [edge for span in record["spans"] for edge in (span["begin"], span["end"])]
    assert edges == sorted(edges)


def test_without_proc_the_engines_own_account_is_kept(tmp_path):
    options = ProfileOptions(
        threads=1, runs=1, warm_up=0, prompts=("",), max_tokens=4, sensors="none", layers=False
    )
    profiler = Profiler(options, root=tmp_path)
    profiler.measure()
    memory = profiler.finish(complete=True)["memory"]
    assert "steady_mib" not in memory
    assert memory["engine_account_mib"]["weights"] > 0


def test_an_interrupted_run_keeps_what_was_measured(monkeypatch):
    profiler = Profiler(ProfileOptions(threads=1, runs=3, max_tokens=4, sensors="none"))
    generate_one = profiler.generate

    def generate_two(*arguments):
        if len(profiler.runs) == 2:
            raise KeyboardInterrupt
        return generate_one(*arguments)

    monkeypatch.setattr(profiler, "generate", generate_two)
    with pytest.raises(KeyboardInterrupt):
        profiler.measure()
    found = profiler.finish(complete=False)
    assert not found["complete"]
    assert len(found["runs"]) == 2
    assert found["summary"]["figures"]["tokens_per_s"]["count"] == 2
    assert found["spans"][-1]["name"] == "runs"
    assert found["spans"][-1]["end"] > found["spans"][-1]["begin"]


def test_an_engine_that_only_enqueues_is_settled_in_a_pass_of_its_own(monkeypatch):
    profiler = Profiler(ProfileOptions(threads=1, runs=1, max_tokens=8, sensors="none"))
    calls = []

    class Device:
        def flush(self):
            calls.append("flush")

        def synchronize(self):
            calls.append("wait")

        def memory(self):
            return 1 << 20, 3 << 20

    load = profiler._load

    def load_with_device():
        pipeline = load()
        pipeline.engines.device = Device()
        return pipeline

    monkeypatch.setattr(profiler, "_load", load_with_device)
    profiler.measure()
    found = profiler.finish(complete=True)
    assert found["stages_settled"]
    nfe = sum(run.nfe for run in profiler.settled_runs)
    assert calls == ["flush", "wait"] * (3 * nfe)


def test_the_observer_sees_every_run_and_changes_no_token():
    with Pipeline.load(threads=1) as pipeline:
        plain = pipeline.generate("Once", max_tokens=20, seed=3).result()
        seen = []
        pipeline.observer = seen.append
        watched = pipeline.generate("Once", max_tokens=20, seed=3).result()
    assert watched.token_ids == plain.token_ids
    assert len(seen) == plain.nfe
    assert sum(step.num_committed for step in seen) == len(plain.token_ids)
    assert [step.phase for step in seen][-1] == "denoise"
