"""A tiny masked model as modules, and the manifest that decodes it."""

import torch
from dlm_edge.train.families import FAMILIES
from manifests import plain_manifest

VOCAB, BLOCK, CONTEXT = 258, 4, 16


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
    return plain_manifest(
        specs, max_position=CONTEXT, target="host", decoding={"rule": "threshold"}
    )
