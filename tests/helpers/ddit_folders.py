"""Folders of random DDiT models with the names and keys of the published ones, and a forward pass
written from their papers: every layer modulated by its condition, nothing folded."""

import json
import math

import torch
import torch.nn.functional as F
from diffusion_folders import SPECIAL, qwen_tokenizer
from safetensors.torch import save_file

DIM, LAYERS, HEADS, CONDITION, LENGTH = 32, 2, 2, 8, 32
ROWS = 258
"""The tokenizer's 257 ids, and the mask."""
NAMES = {"MDLM": "mdlm", "BD3LM": "bd3lm", "DUO": "DUO"}


def random_tensors(seed=0):
    """Tensors by their names without a prefix."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, scale=0.2):
        return torch.randn(*size, generator=generator) * scale

    found = {
        "vocab_embed.embedding": draw(ROWS, DIM, scale=1.0),
        "sigma_map.mlp.0.weight": draw(CONDITION, 256),
        "sigma_map.mlp.0.bias": draw(CONDITION),
        "sigma_map.mlp.2.weight": draw(CONDITION, CONDITION, scale=1.0),
        "sigma_map.mlp.2.bias": draw(CONDITION, scale=1.0),
        "rotary_emb.inv_freq": torch.zeros(8),
        "output_layer.norm_final.weight": 1 + draw(DIM),
        "output_layer.linear.weight": draw(ROWS, DIM),
        "output_layer.linear.bias": draw(ROWS),
        "output_layer.adaLN_modulation.weight": draw(2 * DIM, CONDITION),
        "output_layer.adaLN_modulation.bias": draw(2 * DIM),
    }
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        found |= {
            f"{block}.norm1.weight": 1 + draw(DIM),
            f"{block}.attn_qkv.weight": draw(3 * DIM, DIM),
            f"{block}.attn_out.weight": draw(DIM, DIM),
            f"{block}.norm2.weight": 1 + draw(DIM),
            f"{block}.mlp.0.weight": draw(4 * DIM, DIM),
            f"{block}.mlp.0.bias": draw(4 * DIM),
            f"{block}.mlp.2.weight": draw(DIM, 4 * DIM),
            f"{block}.mlp.2.bias": draw(DIM),
            f"{block}.adaLN_modulation.weight": draw(6 * DIM, CONDITION),
            f"{block}.adaLN_modulation.bias": draw(6 * DIM, scale=0.7),
        }
    return found


def make_ddit(folder, name="MDLM", *, prefix="backbone.", **changes):
    """Writes a folder without a tokenizer, and one beside it; returns the tensors."""
    folder.mkdir(parents=True)
    tensors = random_tensors()
    save_file({prefix + key: item for key, item in tensors.items()}, folder / "model.safetensors")
    config = {
        "architectures": [name],
        "model_type": NAMES[name],
        "hidden_dim": DIM,
        "n_blocks": LAYERS,
        "n_heads": HEADS,
        "cond_dim": CONDITION,
        "model_length": LENGTH,
        "vocab_size": ROWS,
        "time_conditioning": False,
        "dropout": 0.1,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    place = folder.parent / "gpt2"
    place.mkdir(exist_ok=True)
    (place / "tokenizer.json").write_text(qwen_tokenizer(None, SPECIAL[:1], ()), "utf-8")
    return tensors


def reference_logits(tensors, ids, block=0, sigma=0.0):
    """Logits (L, V); position i sees its block, counted from 0, and those before; 0: everything."""
    length, size = len(ids), DIM // HEADS
    waves = sigma * torch.exp(-math.log(1e4) * torch.arange(128) / 128)
    t = torch.cat([waves.cos(), waves.sin()])
    for index in (0, 2):
        t = tensors[f"sigma_map.mlp.{index}.weight"] @ t + tensors[f"sigma_map.mlp.{index}.bias"]
        t = F.silu(t)
    angles = torch.arange(length)[:, None] * 1e4 ** (-torch.arange(0, size, 2) / size)
    cosine, sine = (torch.cat([part, part], 1)[:, None] for part in (angles.cos(), angles.sin()))

    def turn(x):
        return x * cosine + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * sine

    def modulation(layer, count):
        name = f"{layer}.adaLN_modulation"
        return (tensors[f"{name}.weight"] @ t + tensors[f"{name}.bias"]).chunk(count)

    def norm(x, name, shift, scale):
        return F.layer_norm(x, (DIM,)) * tensors[f"{name}.weight"] * (1 + scale) + shift

    number = torch.arange(length) // (block or length)
    seen = number[:, None] >= number[None, :]
    x = tensors["vocab_embed.embedding"][torch.tensor(ids)]
    for index in range(LAYERS):
        name = f"blocks.{index}"
        shift, scale, gate, shift2, scale2, gate2 = modulation(name, 6)
        mixed = norm(x, f"{name}.norm1", shift, scale) @ tensors[f"{name}.attn_qkv.weight"].T
        q, k, v = mixed.view(length, 3, HEADS, size).unbind(1)
        scores = torch.einsum("ihd,jhd->hij", turn(q), turn(k)) / size**0.5
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", weights, v).reshape(length, DIM)
        x = x + gate * (mixed @ tensors[f"{name}.attn_out.weight"].T)
        hidden = norm(x, f"{name}.norm2", shift2, scale2)
        hidden = F.linear(hidden, tensors[f"{name}.mlp.0.weight"], tensors[f"{name}.mlp.0.bias"])
        hidden = F.gelu(hidden, approximate="tanh")
        hidden = F.linear(hidden, tensors[f"{name}.mlp.2.weight"], tensors[f"{name}.mlp.2.bias"])
        x = x + gate2 * hidden
    x = norm(x, "output_layer.norm_final", *modulation("output_layer", 2))
    return F.linear(x, tensors["output_layer.linear.weight"], tensors["output_layer.linear.bias"])


def make_sedd(folder):
    """Writes a folder of a SEDD as its hub's mixin does; returns the tensors."""
    tensors = make_ddit(folder, prefix="")
    config = {
        "ngpus": 8,
        "tokens": ROWS - 1,
        "graph": {"type": "absorb", "file": "data", "report_all": False},
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
        "model": {
            "name": "small",
            "type": "ddit",
            "hidden_size": DIM,
            "cond_dim": CONDITION,
            "length": LENGTH,
            "n_blocks": LAYERS,
            "n_heads": HEADS,
            "scale_by_sigma": True,
            "dropout": 0.1,
        },
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return tensors


def reference_scores(tensors, ids, sigma):
    """Log-scores (L, V) of an absorbing SEDD: scaled by the noise, 0 at the own token."""
    scores = reference_logits(tensors, ids, sigma=sigma)
    scores = scores - math.log(math.expm1(sigma)) - math.log(ROWS - 1)
    scores[torch.arange(len(ids)), torch.tensor(ids)] = 0.0
    return scores
