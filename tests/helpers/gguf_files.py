"""GGUF files of random models and small vocabularies, written with the package's own writer."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIXES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = [
    "The king's daughter couldn't sleep; she'd counted 1,024 sheep in 2 hours.\r\n\r\nWe'LL see!",
    "def f(x):\n\treturn x ** 2  # naïve café, Straße, Ωmega\n\n\n",
    "  spaces   before, 12345678 digits,   and after   \n 東京 привет नमस्ते",
    "She was here. They were there, the other weather, whether or not 1999 or 2024.",
] * 20


def published(kind: str) -> dict:
    """What tokenizer.json of SmolLM2, Llama 3 and Qwen2.5 says around the BPE."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    patterns = {
        "llama-bpe": rf"{SUFFIXES}|{LETTERS}|\p{{N}}{{1,3}}|{TAIL}",
        "qwen2": rf"{SUFFIXES}|{LETTERS}|\p{{N}}|{TAIL}",
    }
    if kind == "smollm":
        first = {"type": "Digits", "individual_digits": True}
    else:
        pattern = {"Regex": patterns[kind]}
        first = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    steps = [first, {**level, "use_regex": kind == "smollm"}]
    start = {"SpecialToken": {"id": CONTROLS[0], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {CONTROLS[0]: {"id": CONTROLS[0], "ids": [0], "tokens": [CONTROLS[0]]}},
    }
    return {
        "normalizer": {"type": "NFC"} if kind == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": template if kind == "llama-bpe" else None,
        "decoder": {**level, "use_regex": True},
    }


def tokenizer_json(kind: str, vocab_size: int = 500) -> dict:
    """tokenizer.json of a small vocabulary, as the published one of its kind is."""
    trained = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXT, trainer)
    content = {**json.loads(trained.to_str()), **published(kind)}
    content["model"]["ignore_merges"] = kind == "llama-bpe"
    return content


def sentencepiece_facts() -> dict:
    """Metadata of a small vocabulary as SentencePiece makes one, with bytes to fall back on."""
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    trained.train_from_iterator(["\u2581" + text.replace(" ", "\u2581") for text in TEXT], trainer)
    vocab = trained.get_vocab()
    learnt = sorted((piece for piece in vocab if len(piece) > 1), key=vocab.__getitem__)
    letters = sorted((piece for piece in vocab if len(piece) == 1), key=vocab.__getitem__)
    size = [f"<0x{number:02X}>" for number in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *size, *learnt, *letters]
    return {
        "tokenizer_ggml_model": "llama",
        "tokenizer_ggml_pre": "default",
        "tokenizer_ggml_tokens": pieces,
        "tokenizer_ggml_token_type": [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)],
        "tokenizer__ggml__scores": [0.0] * 259 + [-float(n) for n in range(len(pieces) - 259)],
        "tokenizer_ggml_merges": None,
        "tokenizer_ggml_bos_token_id": 1,
        "tokenizer_ggml_eos_token_id": 2,
    }


def write_gguf(
    path: Path, model, kind: str, pre: str, quantisation: str = "F32", *, extra=None, **changes
) -> None:
    """Writes transformers' model and the small vocabulary `pre` as a GGUF file.

    Args:
        path: File to write.
        model: A causal model of transformers.
        kind: general.architecture.
        pre: tokenizer.ggml.pre.
        quantisation: Of all matrices whose rows it can cut into blocks.
        extra: Further tensors by GGUF's names.
        changes: Metadata that differs: a key above with "_" for ".", or another with "__" for ".";
            None leaves it out.
    """
    config, content = model.config, tokenizer_json(pre)
    vocab = content["model"]["vocab"]
    facts = {
        "general.architecture": kind,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.key_length": head_dim(config),
        f"{kind}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{kind}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(vocab, key=vocab.__getitem__),
        "tokenizer.ggml.token_type": [
            3 if number < len(CONTROLS) else 1 for number in vocab.values()
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for message in messages %}{{ message }}{% endfor %}",
    }
    by_key = {key.replace(".", "_"): key for key in facts}
    facts |= {by_key.get(name, name.replace("__", ".")): value for name, value in changes.items()}
    writer = gguf.GGUFWriter(path, facts.pop("general.architecture"))
    for key, value in facts.items():
        match value:
            case None:
                continue
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    names = gguf.get_tensor_name_map(
        {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[kind], config.num_hidden_layers
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = interleaved(array, head_dim(config))
        written = gguf.GGMLQuantizationType[quantisation if array.ndim > 1 else "F32"]
        writer.add_tensor(
            names.get_name(name, (".weight", ".bias")),
            gguf.quantize(np.ascontiguousarray(array), written),
            raw_dtype=written,
        )
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, np.float32(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def head_dim(config) -> int:
    """Positions of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def interleaved(matrix: np.ndarray, size: int) -> np.ndarray:
    """Puts rows that rotate together side by side, head by head, as llama.cpp wants them."""
    heads = [matrix[first : first + size] for first in range(0, len(matrix), size)]
    order = [row for pair in range(size // 2) for row in (pair, pair + size // 2)]
    return np.concatenate([head[order] for head in heads])


def random_model(kind: str, **changes):
    """A small random model of transformers whose rows any 32-block quantisation can cut."""
    import transformers

    torch.manual_seed(5)
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    values = {
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        **changes,
    }
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)
    return model
