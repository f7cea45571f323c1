"""A bundle of a graph made by hand: small, quick, with a cache, and without torch.

logits[i] = TABLE[ids[i]] + RAMP * (sum of the cache's valid rows); kv_new[i] = KEYS[ids[i]].
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from dlm_edge.export.onnx_graph.weights import split_weights
from dlm_edge.runtime.bundle.bundle import write_bundle
from dlm_edge.runtime.bundle.manifest import GraphSpec, Manifest
from manifests import denoise_spec, plain_manifest
from onnx import TensorProto, checker, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB, BLOCK = 20, 4
CONTEXTS = (4, 8)
CACHE = (1, 1, 2, 1, 4)
rng = np.random.default_rng(0)
TABLE = rng.standard_normal((VOCAB, VOCAB)).astype(np.float32)
KEYS = rng.standard_normal((VOCAB, 8)).astype(np.float32)
RAMP = np.linspace(0, 1, VOCAB, dtype=np.float32)


def toy_model():
    """The graph with its weights inside."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["own"]),
        helper.make_node("Shape", ["kv"], ["length"], start=0, end=1),
        helper.make_node("Squeeze", ["length", "axis0"], ["scalar"]),
        helper.make_node("Cast", ["scalar"], ["count"], to=TensorProto.INT32),
        helper.make_node("Range", ["zero", "count", "one"], ["places"]),
        helper.make_node("Less", ["places", "start"], ["valid"]),
        helper.make_node("Reshape", ["valid", "outer"], ["mask"]),
        helper.make_node("Where", ["mask", "kv", "nothing"], ["seen"]),
        helper.make_node("ReduceSum", ["seen"], ["past"], keepdims=0),
        helper.make_node("Mul", ["ramp", "past"], ["shift"]),
        helper.make_node("Add", ["own", "shift"], ["logits"]),
        helper.make_node("Squeeze", ["ids", "axis0"], ["flat"]),
        helper.make_node("Gather", ["keys", "flat"], ["new"]),
        helper.make_node("Reshape", ["new", "cache"], ["kv_new"]),
    ]
    constants = {
        "table": TABLE,
        "keys": KEYS,
        "ramp": RAMP,
        "axis0": np.array([0], np.int64),
        "zero": np.array(0, np.int32),
        "one": np.array(1, np.int32),
        "nothing": np.array(0, np.float32),
        "outer": np.array([-1, 1, 1, 1, 1, 1], np.int64),
        "cache": np.array([-1, *CACHE], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "denoise",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "rows"]),
            helper.make_tensor_value_info("start", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("kv", TensorProto.FLOAT, ["context", *CACHE]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "rows", VOCAB]),
            helper.make_tensor_value_info("kv_new", TensorProto.FLOAT, ["rows", *CACHE]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model


def toy_tokenizer() -> str:
    """Characters of a small alphabet behind the two special tokens."""
    vocab = {"<|endoftext|>": 0, "<|mask|>": 1}
    vocab |= {letter: index + 2 for index, letter in enumerate("abcdefghijklmnopq ")}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|mask|>"])
    return tokenizer.to_str()


def toy_spec(rows: int = BLOCK, context: int = CONTEXTS[0]) -> GraphSpec:
    return denoise_spec(rows, context, vocab=VOCAB, cache=CACHE)


def toy_manifest(**changes) -> Manifest:
    specs = tuple(toy_spec(context=context) for context in CONTEXTS)
    own = {
        "model": {"num_layers": 1, "num_kv_heads": 1, "head_dim": 4, "num_parameters": TABLE.size},
        "max_position": 12,
        "provenance": {"note": "made by hand"},
    }
    return plain_manifest(specs, **{**own, **changes})


def toy_members(folder: Path) -> dict[str, bytes | Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **split_weights({"denoise": ir.from_proto(toy_model())}, folder),
        "tokenizer.json": toy_tokenizer().encode(),
        "report.json": b"{}",
        "card.md": b"A toy.\n",
    }


def write_toy(folder: Path, name: str = "toy.dlm", **changes) -> Path:
    """Writes the bundle into `folder` and returns its path; `changes` are manifest fields."""
    path = folder / name
    write_bundle(path, toy_manifest(**changes), toy_members(folder / "parts"))
    return path
