"""Folders in the layout of `mamba_ssm`: what is written is read, and other shapes are named."""

import json

import pytest
import torch
from dlm_edge.runtime.errors import CheckpointError, ConfigError
from dlm_edge.train.checkpoints.mamba_ssm import (
    is_mamba_ssm,
    load_layers,
    read_mamba_ssm,
    write_mamba_ssm,
)
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.nn.mamba2 import Mamba2Config, Mamba2Trunk
from safetensors.torch import load_file, save_file

CONFIG = Mamba2Config(dim=16, num_layers=2, num_heads=4, state_size=8)
MIXER = {
    # As Mamba2(d_model=16, d_state=8, headdim=8) of the package has them.
    "in_proj.weight": (2 * 32 + 2 * 8 + 4, 16),
    "conv1d.weight": (32 + 2 * 8, 1, 4),
    "conv1d.bias": (32 + 2 * 8,),
    "dt_bias": (4,),
    "A_log": (4,),
    "D": (4,),
    "norm.weight": (32,),
    "out_proj.weight": (16, 32),
}


def package_folder(folder, **changes):
    """A folder as the package writes it: one direction, an embedding, a head."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"backbone.embedding.weight": (20, 16), "backbone.norm_f.weight": (16,)}
    for layer in range(2):
        tensors[f"backbone.layers.{layer}.norm.weight"] = (16,)
        tensors |= {f"backbone.layers.{layer}.mixer.{n}": s for n, s in MIXER.items()}
    tensors |= changes
    drawn = {n: torch.randn(s, generator=generator) for n, s in tensors.items() if s is not None}
    folder.mkdir(exist_ok=True)
    save_file(drawn, folder / "model.safetensors")
    config = {
        "d_model": 16, "n_layer": 2, "vocab_size": 20,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 8},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return drawn, config


def test_both_directions_begin_with_a_packages_layers(tmp_path):
    stored, config = package_folder(tmp_path / "a")
    assert is_mamba_ssm(config)
    start = read_mamba_ssm(tmp_path / "a", config)
    assert start.config == CONFIG
    trunk = Mamba2Trunk(CONFIG)
    modulation = trunk.layers[0].modulation.weight.clone()
    load_layers(trunk, start.weights, tmp_path)
    for layer in range(2):
        for name in MIXER:
            wanted = stored[f"backbone.layers.{layer}.mixer.{name}"]
            for side in ("mixer", "mixer_reverse"):
                found = trunk.state_dict()[f"layers.{layer}.{side}.{name}"]
                assert torch.equal(found, wanted)
    assert torch.equal(trunk.norm_f.weight, stored["backbone.norm_f.weight"])
    assert torch.equal(trunk.layers[0].modulation.weight, modulation)
    assert start.options({"dim": 8}, "dimba")["dim"] == 8
    assert start.options({}, "dimba")["num_heads"] == 4


def test_what_is_written_is_read_with_both_directions(tmp_path):
    torch.manual_seed(1)
    trunk, other = Mamba2Trunk(CONFIG), Mamba2Trunk(CONFIG)
    write_mamba_ssm(trunk, CONFIG, torch.randn(20, 16), tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    start = read_mamba_ssm(tmp_path / "b", config)
    assert start.config == CONFIG
    load_layers(other, start.weights, tmp_path)
    x, condition = torch.randn(1, 9, 16), torch.zeros(1, 16)
    for one, two in zip(trunk.layers, other.layers, strict=True):
        torch.testing.assert_close(one.mixer(x), two.mixer(x))
        torch.testing.assert_close(one.mixer_reverse(x), two.mixer_reverse(x))
    del condition
    names = set(load_file(tmp_path / "b" / "model.safetensors"))
    assert {f"backbone.layers.0.mixer.{name}" for name in MIXER} <= names
    assert {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight"} <= names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.layers.1.mixer.A_log": (5,)}, r"backbone.layers.1.mixer.A_log is \(5,\)"),
        ({"backbone.layers.0.mixer.D": None}, "backbone.layers.0.mixer.D is missing"),
        ({"backbone.layers.2.norm.weight": (16,)}, "backbone.layers.2.norm.weight is none"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, changes, message):
    _, config = package_folder(tmp_path / "c", **changes)
    start = read_mamba_ssm(tmp_path / "c", config)
    with pytest.raises(CheckpointError, match=message):
        load_layers(Mamba2Trunk(CONFIG), start.weights, tmp_path / "c")


def test_layers_of_another_kind_are_refused(tmp_path):
    _, config = package_folder(tmp_path / "d")
    for change in ({"layer": "Mamba1"}, {"ngroups": 2}, {"d_conv": 3}):
        other = {**config, "ssm_cfg": {**config["ssm_cfg"], **change}}
        with pytest.raises(CheckpointError):
            read_mamba_ssm(tmp_path / "d", other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ssm_cfg": None}, "ssm_cfg of config.json is no object"),
        ({"n_layer": None}, "n_layer of config.json must be a positive integer, not None"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 0}}, "headdim of config.json"),
    ],
)
def test_a_malformed_description_is_named(tmp_path, change, message):
    _, config = package_folder(tmp_path / "e")
    with pytest.raises(CheckpointError, match=message):
        read_mamba_ssm(tmp_path / "e", {**config, **change})


def test_a_family_of_another_backbone_names_it(tmp_path):
    _, config = package_folder(tmp_path / "f")
    start = read_mamba_ssm(tmp_path / "f", config)
    with pytest.raises(ConfigError, match=r"--family mdlm has the backbone native.*, not mamba2"):
        FAMILIES["mdlm"].make_config(start.options({}, "mdlm"))
