"""Text from a checkpoint without export, and the folder it is kept in."""

import pytest
import torch
from dlm_edge.runtime.errors import BundleError, CheckpointError, ConfigError
from dlm_edge.train.checkpoints.checkpoint import load_weights
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.pretrained import Pipeline, save_pretrained
from score_bundle import write_score
from tiny_checkpoint import make_checkpoint

FAMILY_OPTIONS = [
    ("mdlm", {}),
    ("sedd", {"graph": "uniform", "mask_token_id": 1}),
    ("sedd", {"graph": "absorb", "mask_token_id": 1}),
]


@pytest.mark.parametrize(("family", "options"), FAMILY_OPTIONS, ids=str)
def test_a_checkpoint_writes_text_without_export(tmp_path, family, options):
    make_checkpoint(tmp_path / "made", family, **options)
    with Pipeline.from_pretrained(tmp_path / "made", threads=1) as pipeline:
        assert pipeline.engines.name == "torch-cpu"
        wanted = {"max_tokens": 6, "seed": 1, "temperature": 1.0}
        first = pipeline.generate("once", **wanted).result()
        again = pipeline.generate("once", **wanted).result()
        steps = {"num_steps": 3} if family == "sedd" else {}
        several = pipeline.generate("once", num_samples=2, **steps, **wanted)
        frames = list(pipeline.frames("once", **steps, **wanted))
    assert len(first.token_ids) > 0
    assert first.text == again.text
    assert len(several) == 2
    assert frames[-1].text.startswith("once")


def test_a_pipeline_saves_what_it_opened(tmp_path):
    make_checkpoint(tmp_path / "first", "sedd", mask_token_id=1)
    with Pipeline.from_pretrained(tmp_path / "first", threads=1) as pipeline:
        pipeline.save_pretrained(tmp_path / "second")
        text = pipeline.generate(max_tokens=8, seed=2).result().text
    names = sorted(path.name for path in (tmp_path / "second").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    with Pipeline.from_pretrained(tmp_path / "second", threads=1) as pipeline:
        assert pipeline.generate(max_tokens=8, seed=2).result().text == text


def test_what_is_saved_is_what_is_read(tmp_path):
    make_checkpoint(tmp_path / "first")
    kept = open_any(tmp_path / "first")
    model = FAMILIES["mdlm"].make_model(kept.config["model"])
    load_weights(model, kept)
    save_pretrained(model, kept.config, kept.tokenizer_json, tmp_path / "second")
    again = open_any(tmp_path / "second")
    assert again.config == kept.config
    assert again.tokenizer_json == kept.tokenizer_json
    for name, tensor in kept.weights.items():
        assert torch.equal(again.weights[name], tensor)


def test_bundles_are_opened_as_the_runtime_opens_them(tmp_path):
    pytest.importorskip("onnxruntime")
    make_checkpoint(tmp_path)
    path = write_score(tmp_path / "model.dlm")
    for where in (path, tmp_path):  # a bundle beside its checkpoint is taken: it is faster
        with Pipeline.from_pretrained(where, threads=1) as pipeline:
            assert pipeline.engines.name == "onnxruntime-cpu"
            with pytest.raises(CheckpointError, match="not a checkpoint"):
                pipeline.save_pretrained(tmp_path / "copy")
    with pytest.raises(BundleError, match="cannot open"):
        Pipeline.from_pretrained(tmp_path / "nowhere.dlm")


def test_options_that_a_checkpoint_does_not_have_are_refused(tmp_path):
    make_checkpoint(tmp_path)
    for option, value in {"engine": "tensorrt", "threads": 0}.items():
        with pytest.raises(ConfigError, match=option):
            Pipeline.from_pretrained(tmp_path, **{option: value})
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        Pipeline.from_pretrained(tmp_path / "nowhere")
