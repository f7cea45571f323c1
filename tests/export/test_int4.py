"""--precision int4: from a GGUF file or a folder to a bundle."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from dlm_edge.export.pack import ExportSettings, export_checkpoint
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.measure.check import check_bundle
from gguf_files import random_model, tokenizer_json, write_gguf
from tiny_checkpoint import make_checkpoint

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("few_measurements")
COMMON = {"precision": "int4", "blocks": (4,), "contexts": (32,)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("int4")
    rows = len(tokenizer_json("smollm")["model"]["vocab"])
    model = random_model("llama", vocab_size=rows, hidden_size=64, intermediate_size=96)
    write_gguf(folder / "small.gguf", model, "llama", "smollm", "Q4_1")
    settings = ExportSettings(calibration_data=text, loss_tokens=200, max_loss=5.0, **COMMON)
    report = export_checkpoint(folder / "small.gguf", folder / "small.dlm", settings)
    return folder, report


def test_a_4_bit_file_keeps_its_bits_and_loses_little(exported):
    folder, report = exported
    bundle = open_bundle(folder / "small.dlm")
    assert bundle.manifest.precision == "int4"
    layers = json.loads(bundle.member("recipe.json").read_bytes())["graphs"]["denoise"]["layers"]
    found = {name: item["precision"] for name, item in layers.items()}
    assert set(found.values()) <= {"int4", "int8", "int8-weight"}
    assert sum(item == "int4" for item in found.values()) == len(found) - 1
    assert report["quality"]["budget"]["given_up"] == 0
    assert set(report["quality"]["variants"]) == {"fp32", "fp16", "int4"}
    model = onnx.load(str(bundle.member("graphs/denoise.onnx")))
    assert sum(node.op_type == "MatMulNBits" for node in model.graph.node) == len(found) - 1


def test_the_bundle_runs_and_holds_its_golden_vectors(exported):
    folder, _ = exported
    bundle = open_bundle(folder / "small.dlm")
    engines = open_engines(bundle, threads=1)
    assert check_bundle(bundle, load_model(bundle.manifest, engines))["ok"]


def test_without_text_values_are_rounded_and_it_is_said(exported, tmp_path):
    folder, _ = exported
    lines = []
    settings = ExportSettings(uncalibrated=True, **COMMON)
    export_checkpoint(folder / "small.gguf", tmp_path / "rounded.dlm", settings, lines.append)
    assert "uncalibrated: what int4 costs is not measured" in lines


def test_a_board_gets_weights_of_4_bits_in_larger_groups(tmp_path):
    make_checkpoint(tmp_path / "wide", "ar", dim=64, num_heads=2, num_layers=1, context=32)
    settings = ExportSettings(target="orin-nano", uncalibrated=True, **COMMON)
    path = tmp_path / "board.dlm"
    report = export_checkpoint(tmp_path / "wide", path, settings)
    layers = json.loads(open_bundle(path).member("recipe.json").read_bytes())["graphs"]["denoise"]
    found = {name: item["precision"] for name, item in layers["layers"].items()}
    assert found["trunk.layers.0.attention.qkv"] == "int4"
    graph = ir.load(open_bundle(path).member("graphs/denoise.onnx"))
    kinds = [item.dtype for item in graph.graph.initializers.values()]
    assert kinds.count(ir.DataType.INT4) == list(found.values()).count("int4") > 0
    assert report["forecast"]


def test_the_bundle_is_small_and_its_loss_is_a_number(exported):
    _, report = exported
    sizes = {name: item["num_bytes"] for name, item in report["quality"]["variants"].items()}
    assert sizes["int4"] < 0.6 * sizes["fp16"]
    assert np.isfinite(report["quality"]["variants"]["int4"]["ratio"]["value"])
