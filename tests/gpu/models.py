"""A tiny masked model as modules, and the manifest that decodes it."""

import torch
from dlm_edge.runtime.manifest import Manifest
from dlm_edge.train.families import FAMILIES

VOCAB, BLOCK, CONTEXT = 258, 4, 16
SHAPES = [(BLOCK, 8), (BLOCK, CONTEXT), (CONTEXT, 8)]


def tiny_graphs(device="cpu"):
    torch.manual_seed(0)
    family = FAMILIES["mdlm"]
    config = family.make_config(
        {"dim": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCAB, "context": CONTEXT,
         "eos_token_id": 0, "mask_token_id": 1, "block_sizes": f"{BLOCK},full"}
    )  # fmt: skip
    model = family.make_model(config["model"])
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor.mul_(3.0)  # logits that differ
    return family.graphs(model.to(device).eval(), config)


def manifest_of(specs):
    return Manifest(
        family="mdlm",
        model={},
        vocab_size=VOCAB,
        mask_token_id=1,
        eos_token_id=0,
        pad_token_id=None,
        logit_shift=0,
        max_position=CONTEXT,
        block_sizes=(BLOCK, CONTEXT),
        noise_schedule={"name": "loglinear"},
        precision="fp32",
        target="host",
        graphs=specs,
        decoding={"rule": "threshold"},
        provenance={},
    )
