"""The family end to end: from text to a bundle, on the host, on a device, in int8.

The text is "abcabc…" with any letter first: given one letter, all others are certain on both sides.
"""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dlm_edge.export.pack import ExportSettings, export_checkpoint
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import Generation, generate
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.measure.evaluate import eval_line, evaluate_documents
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.train.config import TrainConfig
from dlm_edge.train.loop.run import train
from dlm_edge.train.pretrained import Pipeline as CheckpointPipeline
from emulation.device import EmulatedDevice
from emulation.engines import DeviceEngines

CONTEXT, STEPS = 16, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("dimba")
    texts = [("abc" * 41)[first : first + 120] for first in range(3)] * 10
    (found / "letters.txt").write_text("<|endoftext|>".join(texts), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def summary(folder):
    config = TrainConfig(
        family="dimba",
        data=str(folder / "letters.txt"),
        out=str(folder / "checkpoint"),
        tokenizer="char",
        context=CONTEXT,
        batch_size=16,
        max_steps=400,
        optimizer="adamw",
        lr=0.01,
        warmup_steps=10,
        ema=0.0,
        eval_rows=8,
        eval_every=0,
        log="none",
        cache_dir=str(folder / "cache"),
        options={
            "dim": 32,
            "num_layers": 1,
            "num_heads": 2,
            "state_size": 8,
            "block_sizes": "8,16",
            "prompt_encoder": True,
        },
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(config, quiet=True)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bundle(folder, summary):
    settings = ExportSettings(target="host", data=folder / "letters.txt")
    export_checkpoint(folder / "checkpoint", folder / "letters.dlm", settings)
    return folder / "letters.dlm"


@pytest.fixture(scope="module")
def pipeline(bundle):
    with Pipeline.load(bundle, threads=1) as opened:
        yield opened


def texts(pipeline, **settings) -> list[str]:
    settings = {"steps": STEPS, **settings}
    prompts = ("ab", "abc", "bca")
    return [pipeline.generate(p, max_tokens=6, **settings).result().text for p in prompts]


WANTED = ["cabcab", "abcabc", "bcabca"]


def test_training_learns_to_round_and_to_see_the_letters_around(summary):
    held = summary["held_out"]
    assert set(held) == {f"rounding at noise {level}" for level in (0.3, 0.5, 0.7, 0.9)}
    assert held["rounding at noise 0.7"]["nats_per_token"] < 0.3 < np.log(3)


def test_a_checkpoint_is_decoded_before_it_is_exported(folder, summary):
    with CheckpointPipeline.from_pretrained(folder / "checkpoint") as opened:
        assert texts(opened) == WANTED


def test_its_bundle_has_a_shape_per_length_and_no_cache(pipeline):
    names = {(spec.name, spec.rows) for spec in pipeline.manifest.graphs}
    assert names == {(name, n) for name in ("embed", "denoise", "guided") for n in (8, 16)}
    step = next(spec for spec in pipeline.manifest.graphs if spec.name == "guided")
    assert {tensor.role for tensor in step.inputs} == {
        "canvas", "known", "level", "before", "guidance",
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eta": 1.0},
        {"rule": "dpm_solver"},
        {"guidance": 1.5},
        {"clamp_expected": 0.5},
        {"clamp_nearest": 0.3, "guidance": 2.0, "rule": "dpm_solver"},
        {"temperature": 0.5, "top_k": 3},
    ],
    ids=str,
)
def test_every_rule_continues_the_letters(pipeline, settings):
    assert texts(pipeline, **settings) == WANTED


def test_runs_are_one_look_up_and_the_steps(pipeline):
    result = pipeline.generate("ab", max_tokens=4, steps=5).result()
    assert result.nfe == 1 + 5
    assert result.text == "cabc"


def test_a_text_beyond_the_largest_canvas_goes_on_in_a_window_and_says_so(pipeline):
    result = pipeline.generate("ab", max_tokens=30, steps=STEPS).result()
    assert result.text == ("cab" * 10)
    assert result.approximate


def test_a_gap_is_filled_and_the_text_around_it_kept(pipeline):
    found = pipeline.infill("ab___bcabc", gap_tokens=2, steps=STEPS).result()
    assert found.text == "abcabcabc"


def test_a_watched_canvas_is_rounded_at_every_step_and_nothing_commits_before_the_end(pipeline):
    ids = (pipeline.manifest.eos_token_id, *pipeline.tokenizer.encode("ab"))
    request = Request(
        prompt_ids=ids,
        max_tokens=6,
        seed=1,
        sample_index=0,
        provisional=True,
        settings=pipeline.model.settings({"steps": STEPS}),
    )
    spans = list(Generation(pipeline.model, request))
    shown = [span for span in spans if not span.committed]
    assert len(shown) == STEPS
    assert [span.committed for span in spans].index(True) == STEPS - 1
    for span in shown:
        assert span.token_ids[: len(ids)] == ids
        assert span.fixed is not None
        assert all(span.fixed), "a rounded canvas has no gaps"
    (committed,) = (span for span in spans if span.committed)
    written = (*ids, *committed.token_ids)
    assert shown[-1].token_ids[: len(written)] == written


@pytest.mark.parametrize("kind", ["plain", "asynchronous", "replaying"])
@pytest.mark.parametrize(
    "settings", [{"eta": 0.7}, {"rule": "dpm_solver", "guidance": 2.0, "clamp_nearest": 0.5}]
)
def test_the_loop_on_a_device_writes_the_texts_of_the_host(pipeline, kind, settings):
    device = EmulatedDevice(asynchronous=kind == "asynchronous")
    used = ReplayingDevice(device) if kind == "replaying" else device
    engines = DeviceEngines(pipeline.engines, used)
    models = [load_model(pipeline.manifest, item) for item in (pipeline.engines, engines)]
    for prompt in ("ab", "abc", "a"):
        ids = (pipeline.manifest.eos_token_id, *pipeline.tokenizer.encode(prompt))
        request = Request(
            prompt_ids=ids,
            max_tokens=6,
            seed=3,
            sample_index=0,
            settings=models[0].settings({"steps": 12, **settings}),
        )
        host, found = (generate(model, request) for model in models)
        assert found.token_ids == host.token_ids
        assert found.nfe == host.nfe == 13
    assert (device.counts["replays"] > 0) == (kind == "replaying")


def test_the_figure_on_the_device_is_a_cross_entropy_of_rounding(pipeline):
    model = load_model(pipeline.manifest, pipeline.engines)
    found = evaluate_documents(
        model, pipeline.tokenizer, [["abc" * 40]], block_size=16, seed=1, max_samples=8
    )
    assert 0 < found["nats_per_token"] < np.log(3)
    assert found["nats_low"] <= found["nats_per_token"] <= found["nats_high"]
    assert found["figure"] == "cross-entropy of rounding"
    assert not {"perplexity", "bits_per_char"} & set(found)
    nats = [level["rounding nats"] for level in found["by_noise"].values()]
    errors = [level["latent error"] for level in found["by_noise"].values()]
    assert nats[0] < nats[-1]
    assert errors[0] < errors[-1]
    assert "no likelihood exists" in eval_line(found)
    assert "perplexity " not in eval_line(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 1.5}, "eta must be"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 1001}, "from 1 to 1000"),
        ({"guidance": -1.0}, "guidance"),
        ({"rule": "dpm_solver", "eta": 0.5}, "eta has no effect"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
    ],
)
def test_settings_out_of_range_are_refused(pipeline, settings, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.generate("ab", max_tokens=4, **settings).result()


def test_dlm_run_takes_the_options_of_its_rules(bundle):
    arguments = [str(bundle), "ab", "--threads", "1", "--max-tokens", "6", "--steps", "10"]
    runner = CliRunner()
    assert runner.invoke(main, [*arguments, "--eta", "0.5"]).stdout == "abcabcab\n"
    found = runner.invoke(main, [*arguments, "--eta", "2"])
    assert found.exit_code == 2
    assert "eta" in found.stderr
    info = json.loads(runner.invoke(main, [str(bundle), "--info", "--json"]).stdout)
    assert info["family"] == "dimba"


@pytest.mark.slow
def test_its_graphs_become_int8_and_write_the_same_texts(folder, summary):
    path = folder / "letters.int8.dlm"
    settings = ExportSettings(
        target="host",
        precision="int8",
        calibration_data=folder / "letters.txt",
        loss_tokens=64,
        max_loss=50.0,
    )
    export_checkpoint(folder / "checkpoint", path, settings)
    with Pipeline.load(path, threads=1) as opened:
        assert texts(opened) == WANTED
