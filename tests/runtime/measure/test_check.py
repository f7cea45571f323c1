import json

import numpy as np
import pytest
from dlm_edge.export.checks.golden import golden_vectors
from dlm_edge.runtime.bundle.bundle import open_bundle, write_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import BundleError, EngineError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.measure.check import GOLDEN_NAME, check_bundle
from dlm_edge.train.families.graphs import mask_noise
from toy_bundle import VOCAB, toy_manifest, toy_members, toy_spec, write_toy

NOISES = {"denoise": mask_noise(1)}
IDS = np.random.default_rng(0).integers(2, VOCAB, 12).astype(np.int32)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    bundle = open_bundle(write_toy(tmp_path_factory.mktemp("plain")))
    engines = open_engines(bundle, threads=1)
    return golden_vectors(bundle.manifest, engines, IDS, NOISES, seed=0)


def with_golden(folder, text: bytes):
    path = folder / "golden.dlm"
    write_bundle(path, toy_manifest(), {**toy_members(folder / "parts"), GOLDEN_NAME: text})
    bundle = open_bundle(path)
    return bundle, open_engines(bundle, threads=1)


def opened(folder, text: bytes):
    bundle, engines = with_golden(folder, text)
    return bundle, load_model(bundle.manifest, engines)


def test_the_recording_engine_passes(tmp_path, golden):
    figures = check_bundle(*opened(tmp_path, golden))
    assert figures["ok"]
    assert figures["max_abs_error"] < 1e-5
    assert figures["top1_agreement"] == 1.0
    assert figures["cases"] == 2
    json.dumps(figures, allow_nan=False)


def test_recording_twice_gives_equal_bytes(tmp_path, golden):
    bundle, engines = with_golden(tmp_path, golden)
    assert golden_vectors(bundle.manifest, engines, IDS, NOISES, seed=0) == golden


def test_cases_commit_to_the_cache(golden):
    runs = json.loads(golden)["cases"][1]["runs"]
    assert [run["commit"] for run in runs if run["commit"] is not None] == [0, 4]
    assert {run["inputs"]["start"][0] for run in runs} == {0, 4, 8}


@pytest.mark.parametrize("field", ["top_logits", "log_sum_exp"])
def test_an_engine_that_computes_something_else_fails(tmp_path, golden, field):
    value = json.loads(golden)
    run = value["cases"][1]["runs"][-1]
    run[field] = (np.asarray(run[field]) + 0.1).tolist()
    figures = check_bundle(*opened(tmp_path, json.dumps(value).encode()))
    assert not figures["ok"]
    assert figures["max_abs_error"] == pytest.approx(0.1, abs=1e-3)


def test_a_cache_that_is_not_written_fails(tmp_path, golden):
    value = json.loads(golden)
    for run in value["cases"][1]["runs"]:
        run["commit"] = None
    assert not check_bundle(*opened(tmp_path, json.dumps(value).encode()))["ok"]


def test_nan_is_never_ok(tmp_path, golden):
    bundle, engines = with_golden(tmp_path, golden)
    engine = engines.engine(toy_spec(4, 8))
    original = engine.run

    def broken():
        original()
        engine.outputs["logits"][...] = np.nan

    engine.run = broken
    assert not check_bundle(bundle, load_model(bundle.manifest, engines))["ok"]


def test_a_bundle_without_golden_vectors_is_refused(tmp_path):
    bundle = open_bundle(write_toy(tmp_path))
    with pytest.raises(BundleError, match="golden"):
        check_bundle(bundle, load_model(bundle.manifest, open_engines(bundle)))


def mangle(golden, change) -> bytes:
    value = json.loads(golden)
    change(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(version=9),
        lambda value: value.pop("cases"),
        lambda value: value.update(cases=[1]),
        lambda value: value["cases"][0].pop("runs"),
        lambda value: value["cases"][0].update(dims={"rows": 77}),
        lambda value: value["cases"][0].update(dims=1),
        lambda value: value["cases"][0]["runs"][0].update(inputs={}),
        lambda value: value["cases"][0]["runs"][0].update(rows=[99]),
        lambda value: value["cases"][0]["runs"][0].update(top_ids=[[VOCAB]] * 4),
        lambda value: value["cases"][0]["runs"][0].update(commit=99),
        lambda value: value["cases"][0]["runs"][0]["inputs"].update(ids=["x"] * 4),
        lambda value: value["cases"][0]["runs"][0]["inputs"].update(ids=[1]),
    ],
)
def test_golden_vectors_that_fit_no_graph_are_one_line(tmp_path, golden, change):
    with pytest.raises((BundleError, EngineError)) as caught:
        check_bundle(*opened(tmp_path, mangle(golden, change)))
    assert "\n" not in str(caught.value)
