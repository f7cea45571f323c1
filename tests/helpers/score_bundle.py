"""A bundle of family sedd made by hand: bytes as tokens, a table instead of a network.

log_score is that of independent positions, exactly: position p is byte p of a story or, one time
in five, anything else.
"""

from pathlib import Path

import numpy as np
import onnx
from dlm_edge.runtime.bundle.bundle import write_bundle
from dlm_edge.runtime.bundle.manifest import Manifest
from manifests import score_spec
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

STORY = "The cat sat, the dog ran. "
EOS, MASK, VOCAB = 0, 1, 258
LENGTHS = (16, 32)


def tokenizer_json() -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": EOS, "<|mask|>": MASK}
    vocab |= {character: 2 + i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|mask|>"])
    return tokenizer.to_str()


def probabilities(end: int | None = None) -> np.ndarray:
    """(256, VOCAB) float32: what each position may be; MASK is no state, and has 0.

    Given `end`, the text ends at that position, one time in five at another one.
    """
    ids = Tokenizer.from_str(tokenizer_json()).encode(STORY).ids
    rows = np.random.default_rng(0).gamma(1.0, size=(256, VOCAB)).astype(np.float32)
    for position in range(1, 256):
        rows[position, ids[(position - 1) % len(ids)]] = 1000.0
    rows[:, EOS], rows[:, MASK] = 1e-6, 0.0
    if end is not None:
        rows[end, EOS] = 1e6
    return rows / rows.sum(axis=1, keepdims=True)


def graph_bytes(*, absorb: bool, end: int | None = None) -> bytes:
    shared = [
        helper.make_node("Shape", ["ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "index"], ["length"]),
        helper.make_node("Range", ["zero", "length", "index"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["chances"]),
        helper.make_node("Neg", ["sigma"], ["minus"]),
        helper.make_node("Exp", ["minus"], ["kept"]),
        helper.make_node("Sub", ["one", "kept"], ["moved"]),
        helper.make_node("Mul", ["chances", "kept"], ["still"]),
    ]
    if absorb:  # p_y e^-sigma to 1 - e^-sigma; unmasked positions are not looked at
        nodes = [*shared, helper.make_node("Div", ["still", "moved"], ["ratio"])]
    else:
        nodes = [
            *shared,
            helper.make_node("Mul", ["moved", "share"], ["spread"]),
            helper.make_node("Add", ["still", "spread"], ["noised"]),
            helper.make_node("Squeeze", ["ids", "axis"], ["flat"]),
            helper.make_node("Cast", ["flat"], ["columns"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["columns", "last"], ["column"]),
            helper.make_node("GatherElements", ["noised", "column"], ["own"], axis=1),
            helper.make_node("Div", ["noised", "own"], ["ratio"]),
        ]
    nodes += [
        helper.make_node("Max", ["ratio", "tiny"], ["finite"]),
        helper.make_node("Log", ["finite"], ["scores"]),
        helper.make_node("Unsqueeze", ["scores", "axis"], ["log_score"]),
    ]
    constants = {
        "table": probabilities(end),
        "index": np.int64(1),
        "zero": np.int64(0),
        "one": np.float32(1),
        "share": np.float32(1 / (VOCAB - 1)),
        "tiny": np.float32(1e-30),
        "axis": np.array([0], np.int64),
        "last": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "score",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "rows"]),
            helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("log_score", TensorProto.FLOAT, [1, "rows", VOCAB])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_score(path: Path, graph: str = "uniform", end: int | None = None) -> Path:
    """Writes the bundle to a path that ends in .dlm, and returns it; `end`: see probabilities."""
    manifest = Manifest(
        family="sedd",
        model={"graph": graph},
        vocab_size=VOCAB,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=None,
        logit_shift=0,
        max_position=32,
        block_sizes=LENGTHS,
        noise_schedule={"name": "loglinear", "eps": 1e-3},
        precision="fp32",
        target="cpu",
        graphs=tuple(score_spec(length, VOCAB) for length in LENGTHS),
        decoding={"rule": "tweedie", "steps": 8},
        provenance={},
    )
    members: dict[str, bytes | Path] = {
        "graphs/score.onnx": graph_bytes(absorb=graph == "absorb", end=end),
        "tokenizer.json": tokenizer_json().encode(),
        "report.json": b"{}",
        "card.md": b"A toy.\n",
    }
    write_bundle(path, manifest, members)
    return path
