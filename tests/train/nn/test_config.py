"""Model shapes."""

import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.nn.config import ModelConfig, resolve_model
from dlm_edge.train.nn.transformer import make_backbone


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 7.6), ("small", 17.3), ("medium", 34.3), ("large", 60.7)]
)
def test_presets_have_their_number_of_parameters_within_three_percent(size, millions):
    import torch

    config = resolve_model({"size": size, "vocab_size": 8192, "context": 256})
    with torch.device("meta"):
        model = make_backbone(config.to_json())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.03)


def test_given_dimensions_override_the_preset():
    options = {"size": "tiny", "num_layers": 3, "num_heads": 8, "vocab_size": 8, "context": 8}
    config = resolve_model(options)
    assert (config.dim, config.num_layers, config.head_dim) == (256, 3, 32)
    assert config.hidden_dim == 704


def test_json_round_trip_gives_the_same_config():
    config = resolve_model({"size": "small", "vocab_size": 99, "context": 64, "causal": True})
    assert ModelConfig.from_json(config.to_json()) == config


SHAPE = {"vocab_size": 8, "context": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge", **SHAPE}, "size 'huge' is unknown; choose one of tiny"),
        ({"dim": 64, **SHAPE}, "both --dim and --layers"),
        ({"dim": 100, "num_layers": 1, **SHAPE}, "no multiple of 64"),
        ({"dim": 100, "num_layers": 1, "num_heads": 3, **SHAPE}, "no multiple of --heads 3"),
        ({"dim": 64, "num_layers": 0, **SHAPE}, "num_layers must be a positive integer"),
        ({"dim": 64, "num_layers": 1, "num_heads": 0, **SHAPE}, "positive integer"),
        ({"dim": 6, "num_layers": 1, "num_heads": 2, **SHAPE}, "head_dim must be even"),
        ({"size": "tiny", "dropout": 1.0, **SHAPE}, "dropout must be in"),
        ({"size": "tiny", "num_kv_heads": 3, **SHAPE}, "num_kv_heads 3 must divide num_heads 4"),
        ({"size": "tiny", "rope_theta": 0.0, **SHAPE}, "rope_theta must be above 0"),
        ({"size": "tiny", "backbone": "qwen3", "qkv_bias": True, **SHAPE}, "has qkv_bias false"),
        ({"size": "tiny", "heads": 2, **SHAPE}, "unknown key 'heads'"),
        ({"size": "tiny", "context": 8}, "incomplete"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve_model(options)


def test_an_unknown_backbone_is_refused_by_name():
    with pytest.raises(ConfigError, match="backbone 'rnn' is unknown; choose one of native"):
        resolve_model({"size": "tiny", "backbone": "rnn", **SHAPE})


def test_a_backbone_sets_what_its_architecture_has():
    found = resolve_model({"size": "tiny", "backbone": "qwen2", "num_kv_heads": 2, **SHAPE})
    assert (found.qkv_bias, found.qk_norm, found.norm_eps, found.rope_theta) == (
        (True, False, 1e-6, 1e6)
    )
    found = resolve_model({"size": "tiny", "backbone": "qwen3", "rope_theta": 1e4, **SHAPE})
    assert (found.qkv_bias, found.qk_norm, found.norm_eps, found.rope_theta) == (
        (False, True, 1e-6, 1e4)
    )


def test_a_config_from_before_there_were_backbones_reads_as_the_native_one():
    values = resolve_model({"size": "tiny", **SHAPE}).to_json()
    for name in ("qkv_bias", "qk_norm", "rope_theta", "norm_eps"):
        del values[name]
    found = ModelConfig.from_json(values)
    assert (found.backbone, found.qkv_bias, found.qk_norm) == ("native", False, False)
    assert (found.rope_theta, found.norm_eps) == (1e4, 1e-5)


@pytest.mark.parametrize(("family", "other"), [("ar", "mdlm"), ("mdlm", "ar")])
def test_a_model_of_another_family_is_refused(family, other):
    special = {"eos_token_id": 0, "mask_token_id": 1 if other == "mdlm" else None}
    config = FAMILIES[other].make_config({"dim": 64, "num_layers": 1, **special, **SHAPE})
    with pytest.raises(ConfigError, match="is not this family's"):
        FAMILIES[family].make_model(config["model"])
