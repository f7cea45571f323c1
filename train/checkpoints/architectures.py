"""The public architectures that are read and written: their names, and those of their tensors.

Data only; `hugging_face.py` and `denoising.py` read a checkpoint's files by it. All are one
transformer, whose switches are in `nn.config.BACKBONES`. Our tensors differ from Hugging Face's in
two places: queries, keys and values are one matrix (its rows in this order), and so are the MLP's
gate and up.

| ours | Hugging Face's |
|---|---|
| embed, head, trunk.norm | model.embed_tokens, lm_head (absent if tied), model.norm |
| trunk.layers.N | model.layers.N |
| attention_norm, mlp_norm | input_layernorm, post_attention_layernorm |
| attention.qkv, attention.out | self_attn.q_proj, .k_proj, .v_proj (biases in Qwen2), .o_proj |
| attention.query_norm, .key_norm (Qwen3) | self_attn.q_norm, .k_norm |
| mlp.gate_up, mlp.down | mlp.gate_proj, mlp.up_proj, mlp.down_proj |

Source: LlamaForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM of transformers; the
diffusion models that others made of Qwen2 and Qwen3 (dLLM's A2D, SDAR): same layers, same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WHOLE_CANVAS = 0
"""Block size of a model that denoises the whole canvas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """How the models of a public architecture denoise, where their files say nothing else."""

    mask_token_id: int | None
    """None: the last row of the embedding."""
    blocks: tuple[tuple[str, int], ...] = ()
    """Block size by a regular expression that the model's name holds; the first that matches, and a
    group in it is the size."""
    block: int | None = None
    """Block size where neither config.json nor the name says one; None: it has to be given."""
    canvas: int = 1024
    """Positions of the canvas of a model that denoises it whole."""
    family: str = "mdlm"
    sees_noise: bool = False
    """Whether layers are conditioned on the noise level."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the family that config.json does not name."""
    start: str | None = None
    """The token in front of every text; None: what the tokenizer says."""
    logit_shift: int = 0
    """1: row i speaks for position i + 1."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """How the authors decode, where it is not by the family's first rule."""
    whole_decoding: Mapping[str, Any] = field(default_factory=dict)
    """The same of models that denoise the whole canvas, where others denoise blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A public architecture, and what its config.json means where it says nothing."""

    name: str
    """In `architectures` of config.json."""
    backbone: str
    """Name in `BACKBONES`; a causal model's is also its model_type and GGUF's
    general.architecture."""
    model_type: str
    """In config.json, for files without `architectures`."""
    context: int
    """max_position_embeddings."""
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    denoising: Denoising | None = None
    """None: it is causal, of the family `ar` as it is published."""

    @property
    def family(self) -> str:
        """The family of such a model as it is published."""
        return "ar" if self.denoising is None else self.denoising.family


def _qwen2(name: str, model_type: str, denoising: Denoising | None = None) -> Architecture:
    return Architecture(
        name=name, model_type=model_type, backbone="qwen2", context=32768, denoising=denoising
    )


def _qwen3(name: str, model_type: str, denoising: Denoising | None = None) -> Architecture:
    return Architecture(
        name=name,
        model_type=model_type,
        backbone="qwen3",
        context=32768,
        head_dim=128,
        denoising=denoising,
    )


def _ddit(name: str, model_type: str, decoding: Mapping[str, Any], **how: Any) -> Architecture:
    """A denoiser of GPT-2's tokens, whose files hold no tokenizer; its block is the whole canvas,
    unless config.json names a smaller one."""
    denoising = Denoising(
        mask_token_id=None, block=WHOLE_CANVAS, start="<|endoftext|>", decoding=decoding, **how
    )
    return Architecture(
        name=name, model_type=model_type, backbone="ddit", context=1024, denoising=denoising
    )


def _a2d(mask_token_id: int) -> Denoising:
    """What dLLM makes of causal models: one architecture for both kinds of attention."""
    return Denoising(
        mask_token_id=mask_token_id, blocks=_A2D_BLOCKS, whole_decoding={"sub_block": 32}
    )


_A2D_BLOCKS = (("(?i)bd3lm|tide", 32), ("(?i)opdlm", 4), ("(?i)mdlm", WHOLE_CANVAS))
CAUSAL: Mapping[str, Architecture] = {
    item.backbone: item
    for item in (
        Architecture(name="LlamaForCausalLM", model_type="llama", backbone="llama", context=2048),
        _qwen2("Qwen2ForCausalLM", "qwen2"),
        _qwen3("Qwen3ForCausalLM", "qwen3"),
    )
}
"""Causal ones, by backbone."""
DIFFUSION: tuple[Architecture, ...] = (
    _qwen3("A2DQwen3LMHeadModel", "a2d-qwen3", _a2d(151669)),
    _qwen2("A2DQwen2LMHeadModel", "a2d-qwen2", _a2d(151665)),
    _qwen3(
        "SDARForCausalLM",
        "sdar",
        Denoising(mask_token_id=151669, blocks=((r"-b(\d+)\b", 0),), block=4),
    ),
    _qwen2(
        "Fast_dLLM_QwenForCausalLM",
        "Fast_dLLM_Qwen",
        Denoising(mask_token_id=151665, block=32, logit_shift=1, decoding={"sub_block": 8}),
    ),
    _qwen3(
        "CoDALanguageModel",
        "CoDA",
        Denoising(
            mask_token_id=151669,
            block=WHOLE_CANVAS,
            logit_shift=1,
            decoding={"rule": "entropy"},
        ),
    ),
    # Open-dCoder, whose files name a mask and are otherwise those of a causal model.
    _qwen2(
        "Qwen2ForCausalLM",
        "qwen2",
        Denoising(mask_token_id=151665, block=WHOLE_CANVAS, logit_shift=1),
    ),
    _ddit("MDLM", "mdlm", {"rule": "first_hitting"}),
    _ddit("BD3LM", "bd3lm", {"rule": "first_hitting"}),
    _ddit("SEDD", "sedd", {"steps": 128}, family="sedd", sees_noise=True),
    _ddit(
        "DUO",
        "DUO",
        {"steps": 128},
        family="sedd",
        sees_noise=True,
        options={"graph": "uniform", "noise_schedule": "loglinear", "predicts": "x0"},
    ),
)
ARCHITECTURES = (*CAUSAL.values(), *DIFFUSION)
BLOCK_KEYS = ("block_size", "bd_size")
"""Keys of config.json that hold the block size a model was trained with."""
MASK_KEYS = ("mask_token_id", "text_mask_token_id")
"""Those that hold the mask's id."""
MASK_NAMES = ("<|mask|>", "<|MASK|>", "|<MASK>|", "<text_mask>")
"""What public tokenizers call the mask."""
END_NAMES = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end the text of a diffusion model of Qwen's, whatever its files name."""

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
