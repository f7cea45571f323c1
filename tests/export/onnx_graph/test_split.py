"""Runs over two blocks, a finished one and the next: parity and golden vectors see them, too."""

import json

import numpy as np
import pytest
from dlm_edge.export.checks.canvases import noisy_canvas, splits_of, text_ids
from dlm_edge.export.checks.parity import compare
from dlm_edge.export.pack import export_checkpoint
from dlm_edge.export.settings import ExportSettings
from dlm_edge.export.source import load_source
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.measure.check import check_bundle
from dlm_edge.runtime.text.framing import Framing
from dlm_edge.runtime.text.tokenizer import Tokenizer
from tiny_checkpoint import make_checkpoint

SETTINGS = ExportSettings(target="host", blocks=(4,), contexts=(16,))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sees time"])
def made(request, tmp_path_factory):
    """A checkpoint, and its bundle with blocks of 4, doubles of 8 and the whole canvas."""
    folder = tmp_path_factory.mktemp("split")
    make_checkpoint(folder / "checkpoint", time_conditioning=request.param)
    report = export_checkpoint(
        folder / "checkpoint", folder / "model.dlm", SETTINGS, lambda line: None
    )
    return folder / "checkpoint", open_bundle(folder / "model.dlm"), report, request.param


class Deaf:
    """Engines that take `split` for 0, as a graph would that dropped the input."""

    def __init__(self, engines):
        self._engines = engines

    def __getattr__(self, name):
        return getattr(self._engines, name)

    def engine(self, spec):
        engine = self._engines.engine(spec)
        return engine if isinstance(engine, DeafEngine) else DeafEngine(engine)


class DeafEngine:
    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self):
        self._engine.inputs["split"][...] = 0
        self._engine.run()


def test_every_shape_is_held_to_pytorch_with_and_without_a_split(made):
    report = made[2]
    shapes = report["parity"]["denoise"]["shapes"]
    assert {(s["dims"]["rows"], tuple(s["splits"])) for s in shapes} == {
        (4, (0, 2)), (8, (0, 4)), (16, (0, 8)),
    }  # fmt: skip
    for shape in shapes:
        assert shape["against_torch"]["max_relative_error"] < 1e-4
        # What the second of two blocks sees is what a forward over the whole text sees.
        assert shape["cached_against_uncached"]["max_relative_error"] < 1e-4
        ratios = shape["cached_against_uncached"]["max_abs_error_by_mask_ratio"]
        assert set(ratios) == {"0.0", "1.0"}


def test_a_graph_that_ignores_the_split_is_found_at_export(made):
    checkpoint, bundle, _, sees_time = made
    if sees_time:
        pytest.skip("untrained gates are 0, so that attention adds nothing")
    source = load_source(checkpoint, SETTINGS)
    tokenizer = Tokenizer.load(bundle.member("tokenizer.json"))
    ids = text_ids(tokenizer, Framing.of({"eos_token_id": 0}), 16, None)
    (graph,) = source.graphs
    given = {"ids": ids, "precision": "fp32", "seed": 0}
    engines = open_engines(bundle, "onnxruntime", 1)
    assert compare(graph, bundle.manifest, engines, **given)
    with pytest.raises(EngineError, match="against PyTorch"):
        compare(graph, bundle.manifest, Deaf(engines), **given)


def test_an_engine_that_ignores_the_split_fails_the_golden_vectors(made):
    _, bundle, _, _ = made
    golden = json.loads(bundle.member("golden.json").read_text("utf-8"))
    for case in golden["cases"]:
        splits = {run["inputs"]["split"][0] for run in case["runs"]}
        assert splits == {0, case["dims"]["rows"] // 2}
    engines = open_engines(bundle, "onnxruntime", 1)
    assert check_bundle(bundle, load_model(bundle.manifest, engines))["ok"]
    if not made[3]:  # whose untrained gates are 0, so that attention adds nothing
        assert not check_bundle(bundle, load_model(bundle.manifest, Deaf(engines)))["ok"]


def test_the_finished_block_is_clean_and_told_so(made):
    _, bundle, _, sees_time = made
    spec = next(spec for spec in bundle.manifest.graphs if spec.rows == 8)
    assert splits_of(spec) == (0, 4)
    ids = np.arange(2, 18, dtype=np.int32)

    def corrupt(clean, level, rng, block):
        return np.ones_like(clean), {"time": level}

    canvas = noisy_canvas(spec, ids, 8, corrupt, 0.5, 0, split=4)
    assert canvas.ids.tolist() == [[10, 11, 12, 13, 1, 1, 1, 1]]
    assert canvas.inputs["split"] == 4
    wanted = [0.0] * 4 + [0.5] * 4 if sees_time else 0.5
    assert np.array_equal(canvas.inputs["time"], np.array(wanted, np.float32))
