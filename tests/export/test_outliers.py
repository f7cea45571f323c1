"""A causal model with a few huge channels, as pretrained ones have, goes to int8."""

import json

import pytest
import torch
from dlm_edge.export.checks.figures import TOLERANCES, Tolerance
from dlm_edge.export.pack import ExportSettings, export_checkpoint
from dlm_edge.runtime.bundle.bundle import open_bundle
from public_folders import make_public

pytestmark = pytest.mark.usefixtures("few_measurements")
pytest.importorskip("transformers")
FACTOR = 1000.0
WIDTH = {"head_dim": 16, "num_key_value_heads": 6}


def plant(model):
    """Makes one channel of every attention output a thousand times as large; computes the same."""
    for layer in model.model.layers:
        attention = layer.self_attn
        with torch.no_grad():
            attention.v_proj.weight[5] *= FACTOR
            attention.o_proj.weight[:, 5] /= FACTOR


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("outliers") / "llama"
    model = make_public(path, "llama", **WIDTH)
    for parameter in model.parameters():
        parameter.data *= 0.5 if parameter.ndim > 1 else 1.0
    plant(model)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("target", ["cpu", "orin-nano"])
def test_outliers_are_found_and_bring_the_loss_within_the_budget(
    folder, text, tmp_path, target, monkeypatch
):
    # Untrained logits of so narrow a model are off by half where a text has other first tokens.
    loose = Tolerance(relative=1.0, top1=0.0, divergence=1.0)
    monkeypatch.setitem(TOLERANCES, "int8 typed", loose)
    path = tmp_path / "model.dlm"
    settings = ExportSettings(
        target=target,
        precision="int8",
        calibration_data=text,
        loss_tokens=200,
        max_loss=1.0,
        blocks=(4,),
        contexts=(32,),
    )
    lines: list[str] = []
    report = export_checkpoint(folder, path, settings, lines.append)
    quality = report["quality"]
    assert any("with outliers apart" in line for line in lines)
    assert quality["budget"]["given_up"] == 0
    layers = json.loads(open_bundle(path).member("recipe.json").read_bytes())["graphs"]["denoise"]
    outliers = {name: item["outliers"] for name, item in layers["layers"].items()}
    for number in range(3):
        assert 5 in outliers[f"trunk.layers.{number}.attention.out"]
