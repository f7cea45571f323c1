"""A traced block step, exported once per session: tracing takes seconds."""

import pytest
import torch
from dlm_edge.export.pack import ExportSettings, draft_bundle
from dlm_edge.export.source import Source
from dlm_edge.runtime.manifest import Manifest
from dlm_edge.train.families import FAMILIES

SHAPE = {"dim": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 70, "context": 16}
HIDDEN = 88
BLOCK, CONTEXT = 4, 16


def make_draft(folder, *, target="host", precision="fp32", **options):
    """An untrained model's bundle to be, traced by the exporter into a folder."""
    torch.manual_seed(0)
    family = FAMILIES["mdlm"]
    given = {"eos_token_id": 0, "mask_token_id": 1, "block_sizes": f"{BLOCK},full"}
    config = family.make_config({**SHAPE, **given, **options})
    model = family.make_model(config["model"]).eval()
    manifest = Manifest(
        **family.manifest_fields(config),
        family="mdlm",
        model={"num_parameters": sum(item.numel() for item in model.parameters())},
        vocab_size=SHAPE["vocab_size"],
        precision=precision,
        target=target,
        graphs=(),
        decoding={},
        provenance={},
    )
    source = Source(
        graphs=tuple(family.graphs(model, config)), manifest=manifest, tokenizer_json="{}"
    )
    settings = ExportSettings(
        target=target, precision=precision, blocks=(BLOCK,), contexts=(8, CONTEXT)
    )
    return draft_bundle(source, settings, folder, lambda line: None)[0]


@pytest.fixture(scope="session")
def draft(tmp_path_factory):
    return make_draft(tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="session")
def typed_draft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    return make_draft(folder, target="orin-nano", precision="fp16")
