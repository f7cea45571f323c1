"""Whole exports of an untrained model: every figure of the report is there, every budget holds."""

import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from dlm_edge.export import pack
from dlm_edge.export.pack import ExportSettings, export_checkpoint
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import CalibrationError, ConfigError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.measure.check import check_bundle
from reports import report_of
from tiny_checkpoint import make_checkpoint

pytestmark = pytest.mark.usefixtures("few_measurements")
COMMON = {"loss_tokens": 200, "max_loss": 20.0, "blocks": (4,), "contexts": (16,)}


@pytest.fixture(scope="module")
def exported(small, text, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "model.dlm"
    settings = ExportSettings(precision="int8", target="orin-nano", calibration_data=text, **COMMON)
    return path, export_checkpoint(small, path, settings)


def test_a_bundle_for_a_board_holds_int8_weights_and_runs_here(exported):
    path, report = exported
    bundle = open_bundle(path)
    assert bundle.manifest.precision == "int8"
    assert {spec.precision for spec in bundle.manifest.graphs} == {"int8"}
    model = onnx.load(str(bundle.member("graphs/denoise.onnx")))
    matrices = [item for item in model.graph.initializer if len(item.dims) == 2]
    assert {item.data_type for item in matrices} == {onnx.TensorProto.INT8}
    assert report["graphs"]["denoise"]["operators"]["QuantizeLinear"] == 2 * 4
    engines = open_engines(bundle, threads=1)
    assert "made for orin-nano" in engines.reason
    assert check_bundle(bundle, load_model(bundle.manifest, engines))["ok"]


def test_every_figure_is_in_the_report_and_the_report_in_the_bundle(exported):
    path, report = exported
    quality = report["quality"]
    bundle = open_bundle(path)
    assert report_of(bundle)["quality"] == json.loads(json.dumps(quality))
    assert set(quality["variants"]) == {"fp32", "fp16", "int8"}
    assert set(quality["comparison"]) == {"decode", "clean", "noise"}
    for item in (*quality["variants"].values(), *quality["comparison"].values()):
        assert item["num_bytes"] > 0
        assert item["perplexity"]["low"] <= item["perplexity"]["perplexity"]
        assert item["agreement"]["all"]["rows"] > 0
        assert item["trajectory"]["by_step"]
        assert item["samples"]["entropy"]["value"] > 0
    whole, half, small = (quality["variants"][name] for name in ("fp32", "fp16", "int8"))
    assert whole["ratio"]["value"] == 1.0
    assert whole["agreement"]["all"]["top1"] == 1.0
    assert whole["trajectory"]["same_texts"] == 1.0
    assert small["num_bytes"] < half["num_bytes"] < whole["num_bytes"]
    assert quality["sensitivity"] == []  # the whole is within the budget
    assert len(quality["ranges"]["denoise"]) == 2 * 4 + 1
    assert quality["budget"]["met"]
    assert quality["text"]["block"] == 4
    assert quality["text"]["blocks"] == [4, 16]
    assert all("at blocks of 4 and takes" in line for line in quality["findings"][:2])
    assert "at blocks of 16" in quality["findings"][2]
    assert {"4", "16"} == set(small["by_block"]) == set(whole["by_block"])
    assert quality["budget"]["worst"]["high"] == max(
        item["ratio"]["high"] for item in small["by_block"].values()
    )
    (table,) = quality["tables"]
    assert (table["layer"], table["precision"], table["harmless"]) == ("embed", "int8-weight", True)
    assert quality["calibrated_on"] in ("decode", "clean")
    assert "boats.txt" in quality["text"]["source"]
    assert str(path.parent) not in json.dumps(quality)


def test_page_and_recipe_are_in_the_bundle_and_beside_it(exported):
    path, report = exported
    folder = path.with_suffix(".report")
    assert report["report_dir"] == str(folder)
    assert sorted(item.name for item in folder.iterdir()) == [
        "recipe.json",
        "report.html",
        "report.json",
    ]
    bundle = open_bundle(path)
    for name in ("recipe.json", "report.html"):
        assert bundle.member(name).read_bytes() == (folder / name).read_bytes()
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<svg") >= 4
    assert "Predicted for orin-nano in mode " in page
    for item in report["forecast"]["graphs"]:
        assert f"<td>{item['step_ms']:.2f}</td>" in page
    rows = report["quality"]["variants"]["int8"]["agreement"]["about_to_be_committed"]["rows"]
    assert f" of {rows:,}</td>" in page
    assert "src=" not in page
    assert json.loads((folder / "recipe.json").read_text("utf-8")) == report["quality"]["recipe"]


def test_an_edited_recipe_is_obeyed(exported, traced_before, small, text, tmp_path):
    path, _ = exported
    recipe = json.loads((path.with_suffix(".report") / "recipe.json").read_text("utf-8"))
    layers = recipe["graphs"]["denoise"]["layers"]
    name = "trunk.layers.1.mlp.down"
    layers[name] = {"precision": "float"}
    layers["embed"] = {"precision": "int8", "scale": 0.05}
    (tmp_path / "edited.json").write_text(json.dumps(recipe))
    settings = ExportSettings(
        precision="int8", target="orin-nano", calibration_data=text,
        recipe=tmp_path / "edited.json", report_dir=tmp_path / "out", **COMMON,
    )  # fmt: skip
    report = export_checkpoint(small, tmp_path / "edited.dlm", settings)
    made = report["quality"]["recipe"]["graphs"]["denoise"]["layers"]
    assert made[name]["precision"] == "float"
    assert (made["embed"]["precision"], made["embed"]["scale"]) == ("int8", 0.05)
    bundle = open_bundle(tmp_path / "edited.dlm")
    model = onnx.load(str(bundle.member("graphs/denoise.onnx")))
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    assert kinds[f"model.{name}.weight.fp16"] == onnx.TensorProto.FLOAT16
    assert report["graphs"]["denoise"]["operators"]["QuantizeLinear"] == 2 * 4
    assert (tmp_path / "out" / "report.html").is_file()
    assert report["quality"]["comparison"] == report["quality"]["against_decoding"] == {}
    assert not any("Clean text" in line for line in report["quality"]["findings"])


def test_a_candidate_is_the_same_graph_with_less_measured(traced_before, small, text, tmp_path):
    settings = ExportSettings(precision="int8", target="cpu", calibration_data=text, **COMMON)
    lines = []
    made = pack.make_draft(
        pack.load_source(small, settings), settings, tmp_path, lines.append, candidate=True
    )
    assert made.bundle.manifest.precision == "int8"
    assert made.quality is None
    assert "calibrating on canvases of decoding" in lines
    for left_out in ("recording clean text", "measuring fp16", "measuring ranges by mask ratio"):
        assert left_out not in lines


def test_fp16_with_a_text_has_its_loss_measured(traced_before, small, text, tmp_path):
    path = tmp_path / "half.dlm"
    settings = ExportSettings(precision="fp16", target="orin-nano", calibration_data=text, **COMMON)
    quality = export_checkpoint(small, path, settings)["quality"]
    assert set(quality["variants"]) == {"fp32", "fp16"}
    assert abs(quality["variants"]["fp16"]["ratio"]["value"] - 1) < 1e-3
    assert quality["comparison"] == {}
    assert "calibrated on" not in (tmp_path / "half.report" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("ar", {}),
        ("sedd", {"graph": "uniform", "mask_token_id": 1}),
        ("sedd", {"graph": "absorb", "mask_token_id": 1}),
    ],
)
def test_other_families_go_the_same_way(text, tmp_path, family, options):
    make_checkpoint(tmp_path / "checkpoint", family, scale=1.0, **options)
    path = tmp_path / "model.dlm"
    settings = ExportSettings(
        precision="int8", target="orin-nano", calibration_data=text, loss_tokens=100,
        max_loss=90.0, blocks=() if family == "sedd" else (4,),
    )  # fmt: skip
    report = export_checkpoint(tmp_path / "checkpoint", path, settings)
    variants = report["quality"]["variants"]
    assert variants["int8"]["agreement"]["all"]["rows"] > 0
    assert abs(variants["int8"]["ratio"]["value"] - 1) < 0.5
    bundle = open_bundle(path)
    assert check_bundle(bundle, load_model(bundle.manifest, open_engines(bundle, threads=1)))["ok"]


def test_int8_for_the_cpu_loses_little_and_multiplies_integers(
    traced_before, small, text, tmp_path
):
    path = tmp_path / "cpu.dlm"
    settings = ExportSettings(precision="int8", target="cpu", calibration_data=text, **COMMON)
    report = export_checkpoint(small, path, settings)
    assert report["graphs"]["denoise"]["operators"]["MatMulInteger"] == 2 * 4 + 1
    quality = report["quality"]["variants"]
    assert quality["int8"]["num_bytes"] < quality["fp16"]["num_bytes"]
    bundle = open_bundle(path)
    engines = open_engines(bundle, threads=1)
    assert "made for" not in engines.reason
    assert check_bundle(bundle, load_model(bundle.manifest, engines))["ok"]


def test_what_a_report_needs_is_missed_before_any_work(small, text, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "trace", None)
    settings = ExportSettings(precision="int8", calibration_data=text, **COMMON)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "new" / "folder"):
        with pytest.raises(ConfigError, match=r"file is no folder.*--report-dir"):
            export_checkpoint(small, tmp_path / "x.dlm", replace(settings, report_dir=folder))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="needs matplotlib"):
        export_checkpoint(small, tmp_path / "x.dlm", settings)


def test_a_text_of_one_document_cannot_be_split(small, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("Only one.")
    with pytest.raises(CalibrationError, match=r"one\.txt has too few documents \(1\)"):
        export_checkpoint(
            small, tmp_path / "x.dlm", ExportSettings(precision="int8", calibration_data=path)
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"max_loss": 0.0},
        {"max_loss": float("nan")},
        {"loss_tokens": 63},
        {"force": True},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        ExportSettings(**settings)


def test_every_other_document_is_held_out(small):
    from dlm_edge.calibration.canvases.texts import Texts

    ids = tuple(np.arange(3, dtype=np.int32) for _ in range(2))
    texts = Texts(calibration=ids, held_out=ids, source="")
    assert texts.stream(4).tolist() == [0, 1, 2, 0]
