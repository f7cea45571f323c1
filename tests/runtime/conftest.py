"""A bundle small enough to make in a test: bytes as tokens, a table instead of a network."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from dlm_edge.runtime.bundle.bundle import write_bundle
from dlm_edge.runtime.bundle.manifest import Manifest
from manifests import denoise_spec
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy_bundle import write_toy

STORY = "The cat sat, the café shut. "
"""What the model writes, over and over: position p holds its byte p."""
EOS, MASK, FIRST_BYTE, VOCAB = 0, 1, 2, 258
KV = (1, 1, 2, 1, 1)
SHAPES = ((8, 32), (8, 64), (64, 8))
"""(block, context); the last is the whole canvas."""


def tokenizer_json():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": EOS, "<|mask|>": MASK}
    vocab |= {character: FIRST_BYTE + i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|mask|>"])
    return tokenizer.to_str()


def story_ids():
    return Tokenizer.from_str(tokenizer_json()).encode(STORY).ids


def graph_bytes(end_at=None):
    """logits(position) = noise, and a peak at the story's byte: a high one at even positions."""
    ids = story_ids()
    rng = np.random.default_rng(0)
    table = rng.normal(size=(len(ids), VOCAB)).astype(np.float32)
    for position, token in enumerate(ids):
        table[position, token] = 7.0 + 5.0 * (position % 2 == 0)
    if end_at is not None:
        table[end_at, EOS] = 30.0
    constants = {"table": table, "period": np.int64(len(ids)), "one": np.int64(1)}
    constants |= {"axis": np.array([0], np.int64), "index": np.int64(1), "zero": np.int64(0)}
    nodes = [
        helper.make_node("Shape", ["ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "index"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["offsets"]),
        helper.make_node("Cast", ["start"], ["start64"], to=TensorProto.INT64),
        helper.make_node("Add", ["offsets", "start64"], ["positions"]),
        # The start token stands at position 0, so the story begins at 1.
        helper.make_node("Sub", ["positions", "one"], ["behind"]),
        helper.make_node("Mod", ["behind", "period"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "axis"], ["logits"]),
        helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "kv_shape"], ["keys"]),
        helper.make_node("Concat", ["keys", "keys"], ["kv_new"], axis=3),
    ]
    constants["kv_shape"] = np.array([-1, 1, 1, 1, 1, 1], np.int64)
    floats, ints = TensorProto.FLOAT, TensorProto.INT32
    graph = helper.make_graph(
        nodes,
        "denoise",
        [
            helper.make_tensor_value_info("ids", ints, [1, "rows"]),
            helper.make_tensor_value_info("start", ints, [1]),
            helper.make_tensor_value_info("kv", floats, ["context", *KV]),
        ],
        [
            helper.make_tensor_value_info("logits", floats, [1, "rows", VOCAB]),
            helper.make_tensor_value_info("kv_new", floats, ["rows", *KV]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


MANIFEST = Manifest(
    family="mdlm",
    model={"num_layers": 1, "num_kv_heads": 1, "head_dim": 1},
    vocab_size=VOCAB,
    mask_token_id=MASK,
    eos_token_id=EOS,
    pad_token_id=None,
    logit_shift=0,
    max_position=64,
    block_sizes=(8, 64),
    noise_schedule={"name": "loglinear", "eps": 1e-3},
    precision="fp32",
    target="cpu",
    graphs=tuple(denoise_spec(*shape, vocab=VOCAB, cache=KV) for shape in SHAPES),
    decoding={"rule": "threshold", "threshold": 0.9},
    provenance={"data": "none"},
)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory):
    """Returns a function that packs a bundle with other manifest fields, and gives its path."""

    def make(*, end_at=None, tokenizer=None, name="tiny", more=None, **fields):
        path = tmp_path_factory.mktemp("bundle") / f"{name}.dlm"
        members = {
            "graphs/denoise.onnx": graph_bytes(end_at),
            "tokenizer.json": (tokenizer or tokenizer_json()).encode(),
            "report.json": json.dumps({}).encode(),
            "card.md": b"# tiny\n",
            **(more or {}),
        }
        write_bundle(path, replace(MANIFEST, **fields), members)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle):
    return make_bundle()


@pytest.fixture
def bundle_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_toy(tmp_path)


@pytest.fixture(scope="module")
def bundle_bytes(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("bytes")).read_bytes()
