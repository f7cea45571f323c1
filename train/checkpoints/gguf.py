"""GGUF files, read as the Hugging Face checkpoint that they were made from.

Metadata becomes config.json, tokenizer.json and the files beside them; tensors take Hugging Face's
names and become float32. Knows formats, no models: architectures and names are in
`architectures.py`. The tensor rope_freqs becomes rope_scaling of Llama 3.

Llama's rotary embedding turns neighbouring pairs in GGUF and halves in Hugging Face's form. Rows of
its q and k have another order there, which is undone here.

Source: the GGUF specification and the constants of the package gguf, which reads the blocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import CheckpointError, brief
from .architectures import CAUSAL, GGUF_OF_LAYER, GGUF_WHOLE, HEAD

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderTensor
    from tokenizers import Tokenizer

SUFFIX = ".gguf"
QUANTISATIONS = (
    *("F32", "F16", "BF16", "F64", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[str, str | None] = {
    "smollm": None,
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
}
"""tokenizer.ggml.pre to the expression that cuts text into words; None: GPT-2's, digits apart."""
_SCALED_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALED_FROM = 8192
"""Positions that Llama 3 was trained on before its rotary embedding was stretched."""
SENTENCEPIECE = "llama"
"""tokenizer.ggml.model of Llama 2 and its kind."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Values of tokenizer.ggml.token_type."""
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufCheckpoint:
    """A GGUF file in the terms of a Hugging Face folder."""

    config: dict[str, Any]
    """config.json."""
    tensors: dict[str, torch.Tensor]
    """float32, under Hugging Face's names."""
    tokenizer_json: str
    companions: dict[str, str]
    """tokenizer_config.json (with the chat template) and generation_config.json."""


def read_gguf(path: Path, *, tensors: bool = True) -> GgufCheckpoint:
    """Reads a GGUF file.

    Args:
        tensors: False leaves the tensors out, and with them what config.json says of them.

    Raises:
        CheckpointError: It is missing, damaged, big-endian or one part of several, or of an
            architecture, quantisation or tokenizer that is not known.
    """
    reader = _open(path)
    try:
        facts = _Facts(reader, path)
        _check_whole(facts)
        config = _config(facts)
        return GgufCheckpoint(
            config=config,
            tokenizer_json=_tokenizer(facts).to_str(),
            companions=_companions(facts),
            tensors=_tensors(reader, facts, config) if tensors else {},
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: it holds values that no model has ({brief(error, 120)}); copy it again"
        ) from error


def _tensors(reader: GGUFReader, facts: _Facts, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors; completes the config by what they say."""
    import torch  # not above: who reads only a tokenizer needs no torch

    path = facts.path
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:
            config["rope_scaling"] = _scaling(_values(tensor, path), config, path)
            continue
        name = _name(tensor.name, path)
        found = _values(tensor, path)
        if facts.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            found = _halves(found, heads[name[-len("q_proj.weight")]], path)
        tensors[name] = torch.from_numpy(found)
    config["tie_word_embeddings"] = HEAD not in tensors
    return tensors


def _open(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
        from gguf.constants import GGUFEndian
    except ImportError as error:
        raise CheckpointError(
            f"{path}: GGUF files need the package gguf ({error}): pip install gguf"
        ) from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")

    class Reader(GGUFReader):
        """Refuses what lies beyond the file's end.

        The package reads nothing there, and goes on for as long as a damaged count says.
        """

        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = np.asarray(self.data)  # slices of a memmap take three times as long
            found = super()._get(offset, dtype, count, *order, **named)
            if len(found) < count:
                raise ValueError(f"it ends before byte {offset + count:,}")
            return found

    try:
        reader = Reader(path)
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, OSError) as error:
        reason = brief(error, 120)
        raise CheckpointError(
            f"{path}: not a GGUF file that can be read, or not all of one ({reason}); copy it again"
        ) from error
    if reader.endianess == GGUFEndian.BIG:
        raise CheckpointError(
            f"{path}: a big-endian GGUF file, and only little-endian ones are read; download the "
            "usual file of this model"
        )
    return reader


class _Facts:
    """The metadata of a file, with one-line errors for what is missing."""

    def __init__(self, reader: GGUFReader, path: Path) -> None:
        self._fields, self.path = reader.fields, path
        self.architecture = str(self.get("general.architecture"))
        sizes = {tensor.name: int(tensor.shape[-1]) for tensor in reader.tensors}
        self.rows = sizes.get("token_embd.weight", 0)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where the file has none, and CheckpointError without."""
        field = self._fields.get(key)
        if field is not None:
            try:
                return field.contents()
            except (UnicodeDecodeError, IndexError) as error:
                raise CheckpointError(f"{self.path}: {key} is damaged; copy it again") from error
        if default is None:
            raise CheckpointError(
                f"{self.path}: {key} is missing, without which the model cannot be made; download "
                "a file that a current converter wrote"
            )
        return default

    def has(self, key: str) -> bool:
        """Whether the file has a key."""
        return key in self._fields

    def of_model(self, key: str, default: Any = None) -> Any:
        """The value of a key of the architecture."""
        return self.get(f"{self.architecture}.{key}", default)


def _check_whole(facts: _Facts) -> None:
    """Raises CheckpointError for one part of several, and for architectures that are not known."""
    if facts.get("split.count", 0) > 1:
        raise CheckpointError(
            f"{facts.path}: one of {facts.get('split.count')} parts; join them first with "
            "llama-gguf-split --merge"
        )
    if facts.architecture not in CAUSAL:
        raise CheckpointError(
            f"{facts.path}: architecture {facts.architecture!r} is not supported; choose a GGUF "
            f"file of {', '.join(CAUSAL)}"
        )


def _config(facts: _Facts) -> dict[str, Any]:
    dim, heads = facts.of_model("embedding_length"), facts.of_model("attention.head_count")
    config = {
        "architectures": [CAUSAL[facts.architecture].name],
        "model_type": facts.architecture,
        "vocab_size": facts.rows,
        "hidden_size": dim,
        "num_hidden_layers": facts.of_model("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.of_model("attention.head_count_kv", heads),
        "head_dim": facts.of_model("attention.key_length", dim // max(heads, 1)),
        "intermediate_size": facts.of_model("feed_forward_length"),
        "hidden_act": "silu",
        "max_position_embeddings": facts.of_model("context_length"),
        # Stored as float32: the shortest decimal that gives it is what config.json said.
        "rms_norm_eps": float(str(np.float32(facts.of_model("attention.layer_norm_rms_epsilon")))),
        "rope_theta": float(facts.of_model("rope.freq_base", 10000.0)),
        "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
    }
    if facts.has("tokenizer.ggml.bos_token_id"):
        config["bos_token_id"] = facts.get("tokenizer.ggml.bos_token_id")
    scaling = facts.of_model("rope.scaling.type", "none")
    if scaling != "none":
        config["rope_scaling"] = {"rope_type": scaling}
    return config


def _name(name: str, path: Path) -> str:
    if name in GGUF_WHOLE:
        return GGUF_WHOLE[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in GGUF_OF_LAYER:
        return f"model.layers.{parts[1]}.{GGUF_OF_LAYER[parts[2]]}.{parts[3]}"
    raise CheckpointError(
        f"{path}: tensor {name} is not part of a supported architecture; choose a file of a plain "
        "language model, without adapters or experts"
    )


def _values(tensor: ReaderTensor, path: Path) -> np.ndarray:
    from gguf.quants import dequantize

    kind = tensor.tensor_type.name
    if kind not in QUANTISATIONS:
        raise CheckpointError(
            f"{path}: tensor {tensor.name} is quantised as {kind}, which is not supported; choose "
            f"a file of {', '.join(QUANTISATIONS)}"
        )
    # A copy: the file is mapped and its memory read-only.
    return np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)


def _halves(matrix: np.ndarray, heads: int, path: Path) -> np.ndarray:
    """Puts the rows of q or k (out, in) that rotate together half a head apart."""
    if matrix.shape[0] % (2 * heads):
        raise CheckpointError(
            f"{path}: q or k of {matrix.shape[0]} rows do not make {heads} heads; copy it again"
        )
    pairs = matrix.reshape(heads, -1, 2, matrix.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(matrix.shape)


def _scaling(factors: np.ndarray, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The rope_scaling of Llama 3 that gives the stored factors, one per frequency."""
    factor = float(factors.max())
    low, high = _SCALED_BOUNDS["low_freq_factor"], _SCALED_BOUNDS["high_freq_factor"]
    exponents = np.arange(0, config["head_dim"], 2) / config["head_dim"]
    turns = _SCALED_FROM / (2 * math.pi * config["rope_theta"] ** exponents)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(
            f"{path}: its rotary factors are not those of Llama 3, and others are not supported; "
            "choose the file of another model"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        **_SCALED_BOUNDS,
        "original_max_position_embeddings": _SCALED_FROM,
    }


def _tokenizer(facts: _Facts) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, models

    kind, cut = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "default")
    if kind != SENTENCEPIECE and (kind != "gpt2" or cut not in PRE_TOKENIZERS):
        raise CheckpointError(
            f"{facts.path}: tokenizer {kind}/{cut} is not supported; choose a file with byte-level "
            f"BPE of {', '.join(PRE_TOKENIZERS)}, or with SentencePiece's BPE ({SENTENCEPIECE})"
        )
    tokens = facts.get("tokenizer.ggml.tokens")
    kinds = facts.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(kinds) != len(tokens):
        raise CheckpointError(
            f"{facts.path}: {len(tokens)} tokens and kinds of {len(kinds)}; copy it again"
        )
    vocab = {token: index for index, token in enumerate(tokens) if kinds[index] != _UNUSED}
    if kind == SENTENCEPIECE:
        form = _sentencepiece(facts, tokens, kinds)
    else:
        merges = [tuple(pair.split(" ")) for pair in facts.get("tokenizer.ggml.merges")]
        form = {"merges": merges, "ignore_merges": cut == "llama-bpe"}
    added = {
        index for index, each in enumerate(kinds) if each in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, **form))
    except Exception as error:  # The Rust code raises bare Exception.
        reason = brief(error, 120)
        raise CheckpointError(
            f"{facts.path}: its merges do not fit its tokens ({reason}); copy it again"
        ) from error
    for index in sorted(added):
        special = kinds[index] != _USER_DEFINED
        tokenizer.add_tokens([AddedToken(tokens[index], normalized=False, special=special)])
    if kind == SENTENCEPIECE:
        _set_sentencepiece(tokenizer, facts)
    else:
        _set_pipeline(tokenizer, cut)
    if _starts_with_bos(facts):
        _put_in_front(tokenizer, tokens, facts.get("tokenizer.ggml.bos_token_id"), facts.path)
    return tokenizer


def _sentencepiece(facts: _Facts, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Settings of a BPE that merges as SentencePiece does: the piece of the highest score first."""
    scores = facts.get("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise CheckpointError(
            f"{facts.path}: {len(tokens)} tokens and {len(scores)} scores; copy it again"
        )
    if kinds.count(_BYTE) != 256:
        raise CheckpointError(
            f"{facts.path}: {kinds.count(_BYTE)} of 256 bytes are tokens, so that some text has "
            "none; choose a file of a model with byte fallback"
        )
    places = {token: index for index, token in enumerate(tokens) if kinds[index] == _NORMAL}
    found = []
    for token, index in places.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in places and right in places:
                found.append((-scores[index], places[left], places[right], left, right))
    unknown = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN]
    return {
        "merges": [(left, right) for *_, left, right in sorted(found)],
        "unk_token": unknown[0] if unknown else None,
        "fuse_unk": True,
        "byte_fallback": True,
    }


def _set_sentencepiece(tokenizer: Tokenizer, facts: _Facts) -> None:
    """Has spaces be part of pieces, one of them in front of every text."""
    from tokenizers import decoders, normalizers

    space = "\u2581"
    front = bool(facts.get("tokenizer.ggml.add_space_prefix", True))
    steps = [normalizers.Prepend(space)] if front else []
    normalizer: Any = normalizers.Sequence([*steps, normalizers.Replace(" ", space)])
    tokenizer.normalizer = normalizer
    back = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    decoder: Any = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if front else [])])
    tokenizer.decoder = decoder


def _set_pipeline(tokenizer: Tokenizer, cut: str) -> None:
    """Sets what a tokenizer does around the BPE itself."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

    words = PRE_TOKENIZERS[cut]
    if words is None:
        first: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(words), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    steps: Any = pre_tokenizers.Sequence([first, bytes_])
    tokenizer.pre_tokenizer = steps
    decoder: Any = decoders.ByteLevel()
    tokenizer.decoder = decoder
    offsets: Any = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = offsets
    if cut == "qwen2":
        composed: Any = normalizers.NFC()
        tokenizer.normalizer = composed


def _starts_with_bos(facts: _Facts) -> bool:
    """Whether a start token is in front of every text; Llama's converters leave it unsaid."""
    default = (
        facts.get("tokenizer.ggml.pre", "default") == "llama-bpe"
        or facts.get("tokenizer.ggml.model") == SENTENCEPIECE
    )
    return bool(facts.get("tokenizer.ggml.add_bos_token", default))


def _put_in_front(tokenizer: Tokenizer, tokens: list[str], bos: int, path: Path) -> None:
    from tokenizers import processors

    if not 0 <= bos < len(tokens):
        raise CheckpointError(
            f"{path}: start token {bos} in a vocabulary of {len(tokens)}; copy it again"
        )
    start = tokens[bos]
    template: Any = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start}:1 $B:1", special_tokens=[(start, bos)]
    )
    if tokenizer.post_processor is not None:
        template = processors.Sequence([tokenizer.post_processor, template])
    tokenizer.post_processor = template


def _companions(facts: _Facts) -> dict[str, str]:
    tokens = facts.get("tokenizer.ggml.tokens")
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token"}
    settings: dict[str, Any] = {"add_bos_token": _starts_with_bos(facts)}
    ends = []
    for theirs, ours in names.items():
        number = facts.get(f"tokenizer.ggml.{theirs}_token_id", -1)
        if 0 <= number < len(tokens):
            settings[ours] = tokens[number]
    for kind in ("eos", "eot", "eom"):
        number = facts.get(f"tokenizer.ggml.{kind}_token_id", -1)
        if 0 <= number < len(tokens) and number not in ends:
            ends.append(number)
    if facts.has("tokenizer.chat_template"):
        settings["chat_template"] = facts.get("tokenizer.chat_template")
    return {
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
        "generation_config.json": json.dumps({"eos_token_id": ends}, indent=2) + "\n",
    }
