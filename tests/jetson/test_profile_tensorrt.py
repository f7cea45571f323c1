"""A profile on TensorRT, on a stand-in for a board: all is ours but its runtime and driver."""

import pytest
from dlm_edge.jetson.profile.profile import ProfileOptions, Profiler
from dlm_edge.runtime.pipeline import Pipeline
from emulation.board import make_board
from toy_bundle import write_toy


@pytest.fixture(params=["at once", "later"])
def toy(tmp_path, monkeypatch, request):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make_board(monkeypatch, asynchronous=request.param == "later")
    return write_toy(tmp_path)


def test_stages_are_settled_layers_timed_and_memory_accounted(toy):
    options = ProfileOptions(
        bundle=toy, engine="tensorrt", prompts=("abc", "abcdef"), runs=2, max_tokens=7,
        sensors="none",
    )  # fmt: skip
    profiler = Profiler(options)
    profiler.measure()
    with Pipeline.load(toy, engine="onnxruntime") as pipeline:
        wanted = [
            len(pipeline.generate(prompt, max_tokens=7, sample_index=index).result().token_ids)
            for index in range(2)
            for prompt in options.prompts
        ]
    record = profiler.finish(complete=True)
    assert [run["num_tokens"] for run in record["runs"]] == wanted
    assert record["stages_settled"]
    names = [span["name"] for span in record["spans"]]
    assert names == ["load", "warm-up", "runs", "stages", "layers"]
    assert record["summary"]["stages_ms"]["engine"]["count"] == len(options.prompts)
    assert record["engine"]["name"] == "tensorrt"
    held = record["memory"]["engine_account_mib"]
    assert {"weights", "scratch", "kv", "logits", "inputs"} <= held.keys()
    assert record["memory"]["engine_peak_mib"] == pytest.approx(sum(held.values()), abs=0.02)
    used = [part["device_used_mib"] for part in record["memory"]["parts"]]
    # Nothing runs on a device before the engine's library is there.
    assert used[:2] == [None, None]
    assert 0 <= used[2] <= used[-1] <= record["memory"]["device_peak_mib"]
    for name in ("device used", "engine's account"):
        column = record["sensors"]["columns"][name]
        assert (column["kind"], column["unit"]) == ("memory", "MiB")
        assert column["values"][-1] > 0
        # Once per text: warm-up, runs, stages, layers.
        assert len(column["values"]) == 1 + len(wanted) + len(options.prompts) + 1
    layers = record["layers"]
    assert [(la["name"], la["kind"]) for la in layers["layers"]] == [
        ("{ForeignNode[body]}", "fused"), ("head", "layer"),
    ]  # fmt: skip
    assert layers["layers"][0]["calls"] >= layers["nfe"] - 1
    assert layers["layers"][0]["share"] == pytest.approx(2 / 3, rel=1e-3)


def test_runs_are_captured_again_after_their_layers_were_timed(toy):
    with Pipeline.load(toy, engine="tensorrt") as pipeline:
        engines = pipeline.engines
        before = pipeline.generate("abc", max_tokens=7).result()
        captures = engines.device.captures
        engines.start_layers()
        timed = pipeline.generate("abc", max_tokens=7).result()
        assert not engines.device.captures
        engines.take_layers()
        assert engines.device.captures == captures
        assert pipeline.generate("abc", max_tokens=7).result().token_ids == before.token_ids
        assert timed.token_ids == before.token_ids
