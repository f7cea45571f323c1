"""Checkpoints of untrained models, small enough to trace in a test; their tokens are bytes."""

import math

import torch
from dlm_edge.train.checkpoints.checkpoint import write_checkpoint
from dlm_edge.train.families import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB, CONTEXT, BLOCK = 258, 16, 4
SHAPE = {"dim": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCAB, "context": CONTEXT}


def byte_tokenizer() -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": 0, "<|mask|>": 1}
    vocab |= {character: 2 + index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|mask|>"])
    return tokenizer.to_str()


def make_checkpoint(folder, family="mdlm", *, seed=0, scale=3.0, **options):
    """Writes a checkpoint with weights large enough that logits differ; returns its config."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    options = {**SHAPE, "eos_token_id": 0, "pad_token_id": None, **options}
    if family == "mdlm":
        options = {"mask_token_id": 1, "block_sizes": f"{BLOCK},full", **options}
    config = FAMILIES[family].make_config(options)
    model = FAMILIES[family].make_model(config["model"])
    weights = {
        name: tensor * (scale if tensor.ndim > 1 else 1.0)
        for name, tensor in model.state_dict().items()
    }
    training = {
        "settings": {"data": "/home/someone/stories.txt", "out": "/home/someone/run", "lr": 1e-3},
        "run_state": {"step": 7, "best_nats": math.inf},
        "tokens_seen": 1792,
        "data_sha256": "ab" * 32,
    }
    write_checkpoint(folder, {**config, "training": training}, weights, byte_tokenizer())
    return config
