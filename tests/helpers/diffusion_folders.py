"""Folders of random diffusion models in the formats of public ones, and what their authors' code
would compute: transformers' own layers under the mask that each recipe describes."""

import json
from pathlib import Path

import torch
from public_folders import make_public
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THOUGHTS = ("<think>", "</think>")
"""Added tokens of Qwen3 that are not special."""
IDS = 256 + len(SPECIAL) + len(THOUGHTS)
"""Of the tokenizer without a mask, which takes the next one."""
ROWS = IDS + 7
PUBLIC = {
    "a2d": ("qwen3", {"architectures": ["A2DQwen3LMHeadModel"], "model_type": "a2d-qwen3"}),
    "a2d-qwen2": ("qwen2", {"architectures": ["A2DQwen2LMHeadModel"], "model_type": "a2d-qwen2"}),
    "sdar": (
        "qwen3",
        {
            "architectures": ["SDARForCausalLM"],
            "model_type": "sdar",
            "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
            "fuse_cross_entropy": True,
            "rope_scaling": None,
        },
    ),
    "fast-dllm": (
        "qwen2",
        {
            "architectures": ["Fast_dLLM_QwenForCausalLM"],
            "model_type": "Fast_dLLM_Qwen",
            "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
            "bd_size": 8,
            "conplemenrary_mask": True,
        },
    ),
    "coda": (
        "qwen3",
        {
            "architectures": ["CoDALanguageModel"],
            "model_type": "CoDA",
            "tie_word_embeddings": None,
        },
    ),
    "open-dcoder": ("qwen2", {}),
}
"""By recipe: whose layers it has, and what its config.json says instead."""


def qwen_tokenizer(mask: str | None, special=SPECIAL, thoughts=THOUGHTS) -> str:
    """A tokenizer of bytes with Qwen's special tokens behind them, and a mask of this name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(thoughts))
    if mask is not None:
        tokenizer.add_special_tokens([mask])
    return tokenizer.to_str()


def make_diffusion(
    folder: Path,
    recipe: str = "a2d",
    *,
    mask: str | None = "<|mask|>",
    tied: bool = True,
    licence: str = "apache-2.0",
    changes=None,
    **shape,
):
    """Writes a folder of a recipe; returns transformers' causal model of the same weights.

    Args:
        mask: What its tokenizer calls the mask; None: it has none.
        changes: Keys of config.json; None removes one.
        shape: As `make_public`'s.
    """
    kind, said = PUBLIC[recipe]
    model = make_public(
        folder, kind, vocab_size=ROWS, tie_word_embeddings=tied, eos_token_id=IDS - 3, **shape
    )
    path = folder / "config.json"
    config = {**json.loads(path.read_text("utf-8")), **said, **(changes or {})}
    config = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(config), "utf-8")
    if tied:  # the A2D files hold both matrices
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").write_text(qwen_tokenizer(mask), "utf-8")
    settings = {"chat_template": CHATML, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n", "utf-8")
    return model


@torch.no_grad()
def reference_logits(model, ids, block: int) -> torch.Tensor:
    """Logits (L, V) of one forward in which a position sees its block of positions counted from 0
    and all before it; with a block of 0 everything."""
    length = len(ids)
    number = torch.arange(length) // (block or length)
    hidden = number[:, None] < number[None, :]
    mask = torch.zeros(length, length).masked_fill(hidden, torch.finfo(torch.float32).min)
    model.set_attn_implementation("eager")
    return model(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0].float()


def reference_decode(
    model, prompt, block: int, count: int, mask: int, ends, banned, threshold, *, shift=0, sub=None
):
    """Greedy decoding as the authors describe it, without a cache: blocks counted from position 0,
    each step commits what reaches the threshold, and the most certain position always. With a
    shift, row i - 1 speaks for position i, and a block's first token comes alone, from the clean
    text before; `sub` positions of a block are filled before those that follow."""
    ids, given = list(prompt), len(prompt)
    while len(ids) < given + count:
        size = block - len(ids) % block
        canvas = ids + [mask] * size
        limit = given + count
        while mask in canvas[len(ids) : limit]:
            logits = reference_logits(model, canvas, block)
            if shift:
                logits = torch.cat([logits[:1], logits[:-1]])
            logits[:, [*banned, mask]] = -torch.inf
            best = logits.softmax(-1).max(-1)
            open_ = [i for i in range(len(ids), min(len(canvas), limit)) if canvas[i] == mask]
            first = open_[0] % block
            if shift and first == 0:
                open_ = open_[:1]
            elif sub:
                open_ = [i for i in open_ if i % block // sub == first // sub]
            sure = max(open_, key=lambda i: float(best.values[i]))
            for i in open_:
                if i == sure or best.values[i] >= threshold:
                    canvas[i] = int(best.indices[i])
        ids = canvas[:limit]
        ended = [i for i in range(given, len(ids)) if ids[i] in ends]
        if ended:
            return ids[given : ended[0]]
    return ids[given:]
