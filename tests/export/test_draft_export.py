"""A model that drafts and verifies: exported in parts for a CPU, whole for a board, and decoded."""

import json
from contextlib import closing

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from dlm_edge.calibration import quantise, recording
from dlm_edge.calibration.layers import find_layers
from dlm_edge.export.auto import auto, candidates
from dlm_edge.export.pack import ExportSettings, export_checkpoint
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.layout import causal_layout
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.families.tidar.family import by_draft
from dlm_edge.runtime.families.tidar.layout import draft_rows
from dlm_edge.runtime.families.window import choose_block
from dlm_edge.runtime.measure.check import check_bundle
from dlm_edge.runtime.pipeline import Pipeline
from manifests import find_shape
from tiny_checkpoint import make_checkpoint

TEXT = "<|endoftext|>".join(
    f"The {word} boat sailed over the {other} sea and came home."
    for word in ("red", "blue", "old", "new")
    for other in ("calm", "wild", "grey", "wide", "cold")
)
BLOCKS, CONTEXT = (2, 4), 48
SIZES = {"blocks": BLOCKS, "contexts": (CONTEXT,)}
OPTIONS = {
    "mask_token_id": 1,
    "block_sizes": "2,4",
    "context": CONTEXT,
    "tie_embeddings": True,
    "backbone": "qwen2",
    "num_heads": 4,
    "num_kv_heads": 2,
    "dim": 64,
    "num_layers": 1,
}


@pytest.fixture(scope="module", autouse=True)
def few_measurements():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "NUM_DECODES", 2)
        few = recording.CanvasSettings(per_stratum=2, num_decodes=2, num_windows=1)
        patch.setattr(recording, "HELD_OUT", few)
        patch.setattr(recording, "CALIBRATION", few)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("drafts") / "checkpoint"
    make_checkpoint(path, "tidar", **OPTIONS)
    return path


@pytest.fixture(scope="module")
def in_parts(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "model.dlm"
    return path, export_checkpoint(folder, path, ExportSettings(**SIZES))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model.dlm"
    settings = ExportSettings(target="orin-nano", precision="fp16", **SIZES)
    return path, export_checkpoint(folder, path, settings)


def test_a_cpu_gets_the_head_apart_and_a_board_one_graph(in_parts, whole):
    shapes = {
        (spec.name, spec.rows, spec.context) for spec in open_bundle(in_parts[0]).manifest.graphs
    }
    rows = (1, *map(draft_rows, BLOCKS))
    assert shapes == {("step", n, CONTEXT) for n in rows} | {("head", n, 0) for n in (1, *BLOCKS)}
    shapes = {
        (spec.name, spec.rows, spec.context) for spec in open_bundle(whole[0]).manifest.graphs
    }
    assert shapes == {("step", n, CONTEXT) for n in rows}


def test_the_tied_matrix_of_both_graphs_is_stored_once(in_parts):
    bundle = open_bundle(in_parts[0])
    names = [name for name in bundle.manifest.members if name.endswith(".weights")]
    assert names == ["graphs/step.weights"]
    places = {}
    for graph in ("step", "head"):
        model = onnx.load(str(bundle.member(f"graphs/{graph}.onnx")), load_external_data=False)
        for item in model.graph.initializer:
            if list(item.dims) == [258, 64]:
                entries = {entry.key: entry.value for entry in item.external_data}
                places[graph] = (entries["location"], entries["offset"], entries["length"])
    assert len(places) == 2
    assert places["step"] == places["head"]


def test_every_shape_is_held_to_pytorch_with_and_without_a_cache(in_parts, whole):
    for _, report in (in_parts, whole):
        for shape in report["parity"]["step"]["shapes"]:
            assert shape["against_torch"]["rows"] >= 10
            assert shape["cached_against_uncached"]["rows"] >= 1
    for shape in in_parts[1]["parity"]["step"]["shapes"]:
        assert shape["cached_against_uncached"]["max_relative_error"] < 1e-5
    for shape in in_parts[1]["parity"]["head"]["shapes"]:
        assert shape["against_torch"]["max_relative_error"] < 1e-5


def test_the_golden_vectors_hold_for_both_graphs(in_parts):
    bundle = open_bundle(in_parts[0])
    engines = open_engines(bundle, "onnxruntime")
    result = check_bundle(bundle, load_model(bundle.manifest, engines))
    engines.close()
    assert result["ok"]
    assert result["cases"] == len(bundle.manifest.graphs)


def test_drafts_and_token_by_token_write_the_same_text(in_parts, whole):
    for path in (in_parts[0], whole[0]):
        with Pipeline.load(path, engine="onnxruntime") as pipeline:
            texts = [
                pipeline.generate("The boat", max_tokens=24, temperature=0.0, **more).result().text
                for more in ({"rule": "next_token"}, {"block_size": 2}, {"block_size": 4})
            ]
        assert texts[0] == texts[1] == texts[2]


def test_decoding_is_left_to_take_the_longest_draft_that_was_learnt(in_parts):
    manifest = open_bundle(in_parts[0]).manifest
    assert "block_size" not in manifest.decoding
    shapes = by_draft(manifest.graphs)
    assert list(shapes) == sorted(BLOCKS)
    assert choose_block(shapes, None, (min(BLOCKS),)) == min(BLOCKS)


@pytest.mark.parametrize(
    ("blocks", "why"), [((8,), "72 rows"), (("full",), "whole canvas"), ((99,), "from 1 to")]
)
def test_a_draft_length_that_cannot_be_is_refused_by_name(folder, tmp_path, blocks, why):
    settings = ExportSettings(blocks=blocks, contexts=(CONTEXT,))
    with pytest.raises(ConfigError, match=why):
        export_checkpoint(folder, tmp_path / "model.dlm", settings)


@pytest.mark.parametrize("target", ["cpu", "orin-nano"])
def test_int8_is_calibrated_on_runs_that_draft_and_verify(tmp_path, target):
    make_checkpoint(tmp_path / "checkpoint", "tidar", scale=1.0, **OPTIONS)
    text = tmp_path / "boats.txt"
    text.write_text(TEXT)
    settings = ExportSettings(
        precision="int8", target=target, calibration_data=text, loss_tokens=120, max_loss=20.0,
        blocks=(2,), contexts=(CONTEXT,),
    )  # fmt: skip
    report = export_checkpoint(tmp_path / "checkpoint", tmp_path / "model.dlm", settings)
    bundle = open_bundle(tmp_path / "model.dlm")
    quality = report["quality"]
    assert quality["budget"]["met"]
    pace = quality["variants"]["int8"]["trajectory"]
    assert pace["tokens_per_nfe"] > 0
    assert pace["tokens_per_nfe_of_fp32"] > 0
    assert quality["variants"]["fp32"]["agreement"]["about_to_be_committed"]["top1"] == 1.0
    assert quality["variants"]["int8"]["agreement"]["about_to_be_committed"]["rows"] > 10
    # A likelihood that is exact has no interval, and none is shown.
    assert not any("with 95 %" in line for line in quality["findings"])
    page = (tmp_path / "model.report" / "report.html").read_text(encoding="utf-8")
    assert "<td>exact</td>" in page
    assert "95 % intervals" not in page
    assert "Perplexity is the exact likelihood of" in page
    layers = [
        layer
        for graph in quality["recipe"]["graphs"].values()
        for layer in graph["layers"].values()
    ]
    assert sum(layer["precision"] == "int8" for layer in layers) >= 4
    assert json.loads(bundle.member("recipe.json").read_bytes())["target"] == target


@pytest.mark.parametrize("target", ["cpu", "orin-nano"])
def test_int8_without_text_rounds_weights_only_where_scales_would_be_fixed(
    folder, tmp_path, target
):
    settings = ExportSettings(precision="int8", target=target, uncalibrated=True, **SIZES)
    report = export_checkpoint(folder, tmp_path / "model.dlm", settings)
    assert "quality" not in report
    bundle = open_bundle(tmp_path / "model.dlm")
    recipe = json.loads(bundle.member("recipe.json").read_bytes())
    layers = [layer for graph in recipe["graphs"].values() for layer in graph["layers"].values()]
    found = {layer["precision"] for layer in layers}
    assert found == ({"int8-weight"} if target == "orin-nano" else {"int8", "int8-weight"})
    with Pipeline.load(tmp_path / "model.dlm", engine="onnxruntime") as pipeline:
        assert np.isfinite(pipeline.generate("The", max_tokens=4).result().nfe)


def test_int8_on_a_cpu_reads_a_token_alone_as_among_the_rows_of_a_run(tmp_path):
    """One scale of activations for all rows would let drafts into the verdict on them."""
    make_checkpoint(tmp_path / "checkpoint", "tidar", scale=1.0, **OPTIONS)
    settings = ExportSettings(precision="int8", uncalibrated=True, **SIZES)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "model.dlm", settings)
    ids = np.random.default_rng(5).integers(2, 258, draft_rows(max(BLOCKS)))
    found = {}
    with closing(open_engines(open_bundle(tmp_path / "model.dlm"), "onnxruntime")) as engines:
        for rows in (1, len(ids)):
            engine, layout = (
                engines.engine(find_shape(engines.specs, "step", rows, CONTEXT)),
                causal_layout(rows),
            )
            given = {"ids": ids[None, :rows], "start": [0], "kv": 0}
            given |= {"offsets": layout.offsets, "visible": layout.visible}
            for name, value in given.items():
                engine.inputs[name][...] = value
            engine.run()
            found[rows] = engine.outputs["hidden"][0, 0].copy()
    one, among = found.values()
    assert np.abs(one - among).max() < 1e-5 * np.abs(one).max()


def test_auto_weighs_draft_lengths_by_the_runs_that_they_take(folder, monkeypatch):
    monkeypatch.setattr(candidates, "SAMPLE_TOKENS", 16)
    settings, choice = auto.choose(
        folder, ExportSettings(target="orin-nano", **SIZES), lambda line: None, precisions=("fp16",)
    )
    assert {item["block"] for item in choice["candidates"]} == set(BLOCKS)
    assert settings.blocks == (choice["chosen"]["block"],)
    assert all(item["tokens_per_nfe"] > 0 for item in choice["candidates"])
    assert all(item["tokens_per_s"] > 0 for item in choice["candidates"])


def test_no_layer_of_a_trunk_is_taken_for_a_head(in_parts):
    bundle = open_bundle(in_parts[0])
    model = ir.load(bundle.member("graphs/step.onnx"))
    assert not [layer.name for layer in find_layers(model, {"ids": "canvas"}) if layer.head]
    model = ir.load(bundle.member("graphs/head.onnx"))
    assert [layer.head for layer in find_layers(model, {"rows": "hidden_rows"})] == [True]
