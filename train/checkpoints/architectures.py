"""The public architectures that are read and written: their names, and those of their tensors.

Data only. All are one transformer, whose switches are in `nn.config.BACKBONES`. Our tensors differ
from Hugging Face's in two places: queries, keys and values are one matrix (its rows in this
order), and so are the MLP's gate and up.

| ours | Hugging Face's |
|---|---|
| embed, head, trunk.norm | model.embed_tokens, lm_head (absent if tied), model.norm |
| trunk.layers.N | model.layers.N |
| attention_norm, mlp_norm | input_layernorm, post_attention_layernorm |
| attention.qkv, attention.out | self_attn.q_proj, .k_proj, .v_proj (biases in Qwen2), .o_proj |
| attention.query_norm, .key_norm (Qwen3) | self_attn.q_norm, .k_norm |
| mlp.gate_up, mlp.down | mlp.gate_proj, mlp.up_proj, mlp.down_proj |

Source: LlamaForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A public architecture, and what its config.json means where it says nothing."""

    name: str
    """In `architectures` of config.json."""
    backbone: str
    """Name in `BACKBONES`, which is also its model_type and GGUF's general.architecture."""
    context: int
    """max_position_embeddings."""
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    family: str = "ar"
    """The family of such a model as it is published."""


ARCHITECTURES: Mapping[str, Architecture] = {
    item.backbone: item
    for item in (
        Architecture(name="LlamaForCausalLM", backbone="llama", context=2048),
        Architecture(name="Qwen2ForCausalLM", backbone="qwen2", context=32768),
        Architecture(name="Qwen3ForCausalLM", backbone="qwen3", context=32768, head_dim=128),
    )
}
"""By backbone."""

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WHOLE: Mapping[str, str] = {"embed.weight": EMBED, "trunk.norm.weight": "model.norm.weight"}
"""Our tensors outside the layers, and Hugging Face's; the head is there where it is not tied."""
OF_LAYER: Mapping[str, tuple[str, ...]] = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "attention.qkv.weight": tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
    "attention.qkv.bias": tuple(f"self_attn.{name}_proj.bias" for name in "qkv"),
    "attention.query_norm.weight": ("self_attn.q_norm.weight",),
    "attention.key_norm.weight": ("self_attn.k_norm.weight",),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}
"""Tensor of one of our layers, and those of Hugging Face's that are its rows."""
GGUF_WHOLE: Mapping[str, str] = {
    "token_embd.weight": EMBED,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
}
"""GGUF's tensors outside the layers, and Hugging Face's."""
GGUF_OF_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""As GGUF_WHOLE, of one layer (`blk.N.` there, `model.layers.N.` here)."""
