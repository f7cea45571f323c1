"""Text from a checkpoint without export, and the folder it is kept in."""

import torch
from dlm_edge.train.checkpoint import load_weights, read_checkpoint
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.pretrained import load_pretrained, save_pretrained
from tiny_checkpoint import make_checkpoint


def test_a_checkpoint_writes_text_without_export(tmp_path):
    make_checkpoint(tmp_path / "mdlm")
    with load_pretrained(tmp_path / "mdlm") as pipeline:
        assert pipeline.engines.name == "torch-cpu"
        first = pipeline.generate("once", max_tokens=6, seed=1, temperature=1.0).result()
        again = pipeline.generate("once", max_tokens=6, seed=1, temperature=1.0).result()
    assert len(first.token_ids) > 0
    assert first.text == again.text


def test_what_is_saved_is_what_is_read(tmp_path):
    make_checkpoint(tmp_path / "first")
    kept = read_checkpoint(tmp_path / "first")
    model = FAMILIES["mdlm"].make_model(kept.config["model"])
    load_weights(model, kept)
    save_pretrained(model, kept.config, kept.tokenizer_json, tmp_path / "second")
    again = read_checkpoint(tmp_path / "second")
    assert again.config == kept.config
    assert again.tokenizer_json == kept.tokenizer_json
    for name, tensor in kept.weights.items():
        assert torch.equal(again.weights[name], tensor)
