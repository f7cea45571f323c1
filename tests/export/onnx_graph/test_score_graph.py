"""A graph without a cache, with an input of its own, through an exporter that knows neither."""

import json

import numpy as np
import onnx
import pytest
from dlm_edge.export.pack import export_checkpoint
from dlm_edge.export.settings import ExportSettings
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.measure.check import check_bundle
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.evaluate import open_checkpoint
from manifests import find_shape
from tiny_checkpoint import make_checkpoint

GRAPHS = ("uniform", "absorb")


@pytest.fixture(scope="module", params=GRAPHS)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sedd") / request.param
    options = {"graph": request.param, "mask_token_id": 1, "block_sizes": "8,full"}
    make_checkpoint(folder, "sedd", scale=2.0, **options)
    return folder


def export(checkpoint, folder, **settings):
    path = folder / "model.dlm"
    return export_checkpoint(checkpoint, path, ExportSettings(**settings)), open_bundle(path)


def test_each_length_is_a_shape_over_one_copy_of_the_weights(checkpoint, tmp_path):
    report, bundle = export(checkpoint, tmp_path)
    specs = bundle.manifest.graphs
    assert [(s.name, s.rows, s.context) for s in specs] == [("score", 8, 0), ("score", 16, 0)]
    assert {spec.file for spec in specs} == {"graphs/score.onnx"}
    weights = bundle.manifest.members["graphs/score.weights"].size
    assert weights <= 1.05 * sum(  # with what fills pages up
        t.numel() * 4 for t in open_any(checkpoint).weights.values()
    )
    for shape in report["parity"]["score"]["shapes"]:
        assert shape["against_torch"]["max_relative_error"] < 1e-5
    golden = json.loads(bundle.member("golden.json").read_text("utf-8"))
    sigmas = [run["inputs"]["sigma"][0] for case in golden["cases"] for run in case["runs"]]
    assert min(sigmas) < 0.01 < 5 < max(sigmas)
    assert check_bundle(
        bundle, load_model(bundle.manifest, open_engines(bundle, "onnxruntime", 1))
    )["ok"]


@pytest.mark.parametrize("target", ["cpu", "orin-nano"])
def test_fp16_stored_and_typed_stays_within_its_tolerance(checkpoint, tmp_path, target):
    report, bundle = export(checkpoint, tmp_path, precision="fp16", target=target)
    for shape in report["parity"]["score"]["shapes"]:
        assert 0 < shape["against_torch"]["max_relative_error"] < 1e-2
    model = onnx.load(str(bundle.member("graphs/score.onnx")), load_external_data=False)
    kinds = {item.name: item.type.tensor_type.elem_type for item in model.graph.input}
    assert kinds == {"ids": onnx.TensorProto.INT32, "sigma": onnx.TensorProto.FLOAT}


def test_the_engine_of_a_checkpoint_and_of_its_bundle_score_alike(checkpoint, tmp_path):
    _, bundle = export(checkpoint, tmp_path)
    engines = open_checkpoint(open_any(checkpoint)).engines
    ids = np.random.default_rng(0).integers(2, 250, (1, 8)).astype(np.int32)
    rows = []
    for each in (engines, open_engines(bundle, "onnxruntime", 1)):
        engine = each.engine(find_shape(each.specs, "score", 8, 0))
        engine.inputs["ids"][...] = ids
        engine.inputs["sigma"][...] = 0.02
        engine.run()
        rows.append(np.array(engine.outputs["log_score"]))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)
    own = np.take_along_axis(rows[1], ids[..., None].astype(np.int64), axis=-1)
    assert (own == 0).all()


@pytest.mark.parametrize(
    ("settings", "words"), [({"contexts": (8,)}, "--context"), ({"blocks": (17,)}, "--block 17")]
)
def test_sizes_that_the_graph_cannot_have_are_named(checkpoint, tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        export(checkpoint, tmp_path, **settings)
