"""Folders of random public models as `transformers` writes them, small enough for a test."""

from pathlib import Path

import torch
from tiny_checkpoint import byte_tokenizer

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 50_000.0,
    "eos_token_id": 0,
}
"""Two rows more than the byte tokenizer has ids."""


def tokenizer_without_mask() -> str:
    """The byte tokenizer less its mask: ids 0 and 2 to 257 stay, as in a model that has none."""
    import json

    content = json.loads(byte_tokenizer())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|mask|>"]
    del content["model"]["vocab"]["<|mask|>"]
    vocab = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
    content["model"]["vocab"] = {token: index for index, (token, _) in enumerate(vocab)}
    return json.dumps(content)


def make_public(folder: Path, kind: str = "qwen2", *, shard: str = "5GB", **changes):
    """Writes a random model and its tokenizer; returns transformers' model in evaluation mode."""
    import transformers

    torch.manual_seed(3)
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    values = {**SHAPE, **({"head_dim": 16} if kind == "qwen3" else {}), **changes}
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text(tokenizer_without_mask(), encoding="utf-8")
    return model
