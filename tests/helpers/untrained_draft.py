"""An untrained model's bundle to be: what `dlm-export` traces, before it checks and packs."""

import torch
from dlm_edge.export import pack
from dlm_edge.export.settings import ExportSettings
from dlm_edge.export.source import Traceable
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
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms that are all ones would be stored once for all layers
                weight.add_(torch.rand_like(weight))
    manifest = family.manifest(config, model, target=target, precision=precision)
    source = Traceable(
        graphs=tuple(family.graphs(model, config)), manifest=manifest, tokenizer_json="{}"
    )
    settings = ExportSettings(
        target=target, precision=precision, blocks=(BLOCK,), contexts=(8, CONTEXT)
    )
    return pack.make_draft(source, settings, folder, lambda line: None).bundle
