"""The toy family end to end: from text to a bundle, on the host, on a device, profiled, in int8.

The text is "abcabc…": given the letter before it, each is certain. So a model that reads its source
continues any of the three letters rightly, and one that does not cannot know which comes first.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dlm_edge.export.pack import ExportSettings, export_checkpoint
from dlm_edge.jetson.profile.profile import ProfileOptions, Profiler
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families import table as device_table
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import Entry, load_model
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.rows import ROWS
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.train import families as desktop
from dlm_edge.train.config import TrainConfig
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.loop.run import train
from dlm_edge.train.pretrained import Pipeline as CheckpointPipeline
from emulation.device import EmulatedDevice
from emulation.engines import DeviceEngines

from .desktop import SOURCE, Toy
from .device import ToyDevice, gaussians
from .latent.contract import ddim_table
from .latent.device import CudaLatent
from .latent.host import NumpyLatent
from .rules import ToyDecoding

CONTEXT = 13
STEPS = ToyDecoding().steps


@pytest.fixture(scope="module", autouse=True)
def listed():
    """Lists the toy in the table of each side, and touches nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(desktop.FAMILIES, "toy", Toy())
        patch.setitem(device_table.FAMILIES, "toy", Entry((ToyDecoding,), ToyDevice))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("toy")
    text = "<|endoftext|>".join(["abc" * 40] * 30)
    (found / "letters.txt").write_text(text, encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def summary(folder, listed):
    config = TrainConfig(
        family="toy",
        data=str(folder / "letters.txt"),
        out=str(folder / "checkpoint"),
        tokenizer="char",
        context=CONTEXT,
        batch_size=32,
        max_steps=400,
        optimizer="adamw",
        lr=0.01,
        warmup_steps=10,
        ema=0.0,
        eval_rows=16,
        eval_every=0,
        log="none",
        cache_dir=str(folder / "cache"),
        options={"dim": 32, "num_layers": 1, "num_heads": 2},
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
    export_checkpoint(folder / "checkpoint", folder / "toy.dlm", settings)
    return folder / "toy.dlm"


@pytest.fixture(scope="module")
def pipeline(bundle):
    with Pipeline.load(bundle, threads=1) as opened:
        yield opened


def texts(pipeline, **settings) -> list[str]:
    prompts = ("ab", "abc", "bca")
    return [pipeline.generate(p, max_tokens=6, **settings).result().text for p in prompts]


def test_training_learns_to_read_the_source(summary):
    assert summary["held_out"]["toy"]["nats_per_token"] < 0.3 < np.log(3)


def test_a_checkpoint_is_decoded_before_it_is_exported(folder, summary):
    with CheckpointPipeline.from_pretrained(folder / "checkpoint") as opened:
        assert texts(opened) == ["cabcab", "abcabc", "bcabca"]


def test_its_bundle_encodes_once_and_steps_over_floats_without_a_cache(pipeline):
    encode, denoise = sorted(pipeline.manifest.graphs, key=lambda spec: spec.purpose, reverse=True)
    assert (encode.name, encode.dims) == ("encode", {"batch": 2, "source": SOURCE})
    assert (denoise.name, denoise.dims) == ("denoise", {"batch": 2, "rows": CONTEXT - 1})
    assert denoise.tensor("canvas").dtype == "float32"
    assert denoise.tensor("memory").lifetime == "request"
    assert {tensor.role for tensor in denoise.inputs} == {"canvas", "level", "memory"}
    assert texts(pipeline) == ["cabcab", "abcabc", "bcabca"]
    assert pipeline.generate("ab", max_tokens=6).result().nfe == 1 + STEPS


@pytest.fixture(scope="module")
def conditioned(folder, summary):
    """The same weights, exported with the source as a condition of the request."""
    checkpoint = folder / "conditioned"
    shutil.copytree(folder / "checkpoint", checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["objective"]["source_given"] = True
    (checkpoint / "config.json").write_text(json.dumps(config))
    settings = ExportSettings(target="host", data=folder / "letters.txt")
    export_checkpoint(checkpoint, folder / "conditioned.dlm", settings)
    return folder / "conditioned.dlm"


def source_of(pipeline, prompt: str) -> np.ndarray:
    """The condition that stands for a prompt: its tail behind EOS, and EOS alone."""
    ids = [pipeline.manifest.eos_token_id] * SOURCE + pipeline.tokenizer.encode(prompt)
    return np.array([ids[-SOURCE:], [pipeline.manifest.eos_token_id] * SOURCE], np.int32)


def test_a_condition_that_a_request_brings_decides_its_text(conditioned):
    with Pipeline.load(conditioned, threads=1) as opened:
        for prompt, wanted in (("ab", "cabcab"), ("abc", "abcabc"), ("bca", "bcabca")):
            given = {"source": source_of(opened, prompt)}
            assert opened.generate("", max_tokens=6, conditions=given).result().text == wanted
        many = opened.generate("", num_samples=2, max_tokens=6, conditions=given)
        assert [text.text for text in many] == ["bcabca"] * 2
        with pytest.raises(ConfigError, match="conditions are source, the request has none"):
            opened.generate("ab", max_tokens=6)
        wide = {"source": given["source"].astype(np.int64)}
        with pytest.raises(ConfigError, match=r"source is int64 \(2, 4\), the bundle takes int32"):
            opened.generate("ab", max_tokens=6, conditions=wide)


def test_dlm_run_reads_conditions_from_files(conditioned, pipeline, tmp_path):
    np.save(tmp_path / "source.npy", source_of(pipeline, "ab"))
    arguments = [str(conditioned), "--threads", "1", "--max-tokens", "6", "-p", ""]
    runner = CliRunner()
    found = runner.invoke(main, [*arguments, "--condition", f"source={tmp_path / 'source.npy'}"])
    assert found.stdout == "cabcab\n"
    assert runner.invoke(main, arguments).exit_code == 2
    info = runner.invoke(main, [str(conditioned), "--info", "--json"]).stdout
    assert json.loads(info)["conditions"] == {"source": f"int32 (2, {SOURCE})"}


def test_without_guidance_no_text_depends_on_its_prompt(pipeline):
    assert len(set(texts(pipeline, guidance=0.0))) == 1


def test_its_options_are_checked_like_those_of_any_rule(pipeline):
    assert pipeline.generate("ab", max_tokens=6, steps=2).result().nfe == 3
    with pytest.raises(ConfigError, match="guidance"):
        pipeline.generate("ab", guidance=-1.0)
    with pytest.raises(ConfigError, match="temperature"):
        pipeline.generate("ab", temperature=0.5)


def test_the_bound_on_the_device_is_that_of_training(pipeline, folder):
    family = desktop.FAMILIES["toy"]
    ids = np.array([0, *pipeline.tokenizer.encode("abcabcabcabc")], np.int32)
    model = load_model(pipeline.manifest, pipeline.engines)
    (nats,) = ToyDevice().bound(model, [ids], seed=1, samples=range(200))
    from dlm_edge.train.checkpoints.convert import open_any
    from dlm_edge.train.evaluate import open_model

    checkpoint = open_any(folder / "checkpoint")
    _, module = open_model(checkpoint)
    rows = torch.from_numpy(np.tile(ids, (200, 1)))
    source = torch.zeros(200, SOURCE, dtype=torch.int32)
    wanted = family.eval_loss(
        module, Batch(ids=rows, fields={"source": source}), checkpoint.config, seed=3
    )["toy"].numpy()
    error = np.hypot(nats.sum(axis=1).std(), wanted.std()) / np.sqrt(200)
    assert nats[:, 0].max() == 0
    assert abs(nats.sum(axis=1).mean() - wanted.mean()) < 4 * error


def test_steps_lead_to_the_clean_latents_if_the_model_knows_them():
    rng = np.random.default_rng(0)
    clean, noise, aside = rng.standard_normal((3, 5, 8)).astype(np.float32)
    form, table, guidance = NumpyLatent(), ddim_table(3), NumpyOps().bind(ROWS)
    canvas = form.canvas(table, 5, 8, 4)
    form.begin(canvas, noise)
    for level in (2 / 3, 1 / 3, 0.0):
        both = np.stack([clean + aside / 3, clean + aside])  # 1.5 / 3 - 0.5 = 0
        form.step(guidance.guide(both, 1.5), np.zeros((1, 5, 4), np.float32), canvas)
        angle = np.pi / 2 * level
        wanted = np.cos(angle) * clean + np.sin(angle) * noise
        assert np.allclose(canvas.latents, wanted, atol=1e-5)


def test_noise_is_gaussian_and_keyed_by_seed_and_sample():
    draws = gaussians(1, 0, 200, 50)
    assert abs(draws.mean()) < 0.04
    assert abs(draws.std() - 1) < 0.03
    assert not np.array_equal(draws, gaussians(2, 0, 200, 50))
    assert not np.array_equal(draws, gaussians(1, 1, 200, 50))
    assert np.array_equal(draws[:7], gaussians(1, 0, 7, 50))


@pytest.mark.parametrize("downwards", [False, True])
@pytest.mark.parametrize(("rows", "dim", "vocab"), [(1, 1, 2), (5, 33, 31), (12, 64, 100)])
def test_its_kernels_do_what_numpy_does(rows, dim, vocab, downwards):
    rng = np.random.default_rng(rows)
    device, table = EmulatedDevice(downwards=downwards), ddim_table(3)
    forms = CudaLatent(device), NumpyLatent()
    canvases = [form.canvas(table, rows, dim, vocab) for form in forms]
    noise = rng.standard_normal((rows, dim)).astype(np.float32)
    for form, canvas in zip(forms, canvases, strict=True):
        form.begin(canvas, noise)
    for _ in table:
        clean = rng.standard_normal((1, rows, dim)).astype(np.float32)
        logits = rng.integers(-3, 4, (1, rows, vocab)).astype(np.float32)  # with ties
        there = [device.empty(values.shape, np.float32) for values in (clean, logits)]
        for target, values in zip(there, (clean, logits), strict=True):
            device.upload(target, values)
        forms[0].step(*there, canvases[0])
        forms[1].step(clean, logits, canvases[1])
        assert np.allclose(device.download(canvases[0].latents), canvases[1].latents, atol=1e-5)
        assert np.array_equal(forms[0].ids(canvases[0]), canvases[1].ids)
        assert np.array_equal(canvases[1].ids, logits[0].argmax(axis=1))
        assert device.download(canvases[0].level)[0] == canvases[1].level[0]


@pytest.mark.parametrize("kind", ["plain", "asynchronous", "replaying"])
def test_the_loop_on_a_device_writes_the_texts_of_the_host(pipeline, kind):
    device = EmulatedDevice(asynchronous=kind == "asynchronous")
    used = ReplayingDevice(device) if kind == "replaying" else device
    engines = DeviceEngines(pipeline.engines, used)
    models = [load_model(pipeline.manifest, item) for item in (pipeline.engines, engines)]
    for prompt in ("ab", "ab", "abc"):
        ids = (0, *pipeline.tokenizer.encode(prompt))
        request = Request(prompt_ids=ids, max_tokens=6, seed=3, sample_index=0)
        host, found = (generate(model, request) for model in models)
        assert found.token_ids == host.token_ids
        assert found.nfe == host.nfe == 1 + STEPS
    assert (device.counts["replays"] > 0) == (kind == "replaying")


def test_it_is_profiled_like_any_family(bundle):
    options = ProfileOptions(
        bundle=bundle,
        threads=1,
        runs=1,
        max_tokens=6,
        prompts=("ab",),
        sensors="none",
        layers=False,
    )
    profiler = Profiler(options)
    profiler.measure()
    found = profiler.finish(complete=True)
    (run,) = found["runs"]
    assert run["nfe"] == 1 + STEPS
    assert [phase for phase, *_ in run["steps"]] == ["encode", *["denoise"] * STEPS]


@pytest.mark.slow
def test_its_graphs_become_int8_and_write_the_same_texts(folder, summary):
    path = folder / "toy.int8.dlm"
    settings = ExportSettings(
        target="host",
        precision="int8",
        calibration_data=folder / "letters.txt",
        loss_tokens=64,
        max_loss=50.0,
    )
    found = export_checkpoint(folder / "checkpoint", path, settings)
    layers = found["quality"]["ranges"]
    assert {"source_in", "source_out"} <= set(layers["encode"])
    assert {"read", "trunk.layers.0.mlp.down"} <= set(layers["denoise"])
    with Pipeline.load(path, threads=1) as opened:
        assert {spec.precision for spec in opened.manifest.graphs} == {"int8"}
        assert texts(opened) == ["cabcab", "abcabc", "bcabca"]
