"""Bundles whose graphs serve several texts at once give the texts of one at a time."""

import numpy as np
import pytest
from dlm_edge.export.checks.parity import compare_batches
from dlm_edge.export.pack import export_checkpoint
from dlm_edge.export.settings import ExportSettings
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.runtime.side_by_side import BatchTimes, SharedGeneration, usual_shape
from tiny_checkpoint import make_checkpoint

BATCH = 3


@pytest.fixture(scope="module", params=["mdlm", "ar", "tidar"])
def bundle(request, checkpoint, causal_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("batches") / f"{request.param}.dlm"
    drafting = path.with_name("draft")
    make_checkpoint(drafting, "tidar", block_sizes="3", mask_token_id=1)
    source = {"mdlm": checkpoint, "ar": causal_checkpoint, "tidar": drafting}[request.param]
    report = export_checkpoint(source, path, ExportSettings(batch=BATCH))
    shapes, times = report["batches"]["shapes"], report["batches"]["times"]
    assert all(one["max_relative_error"] < 1e-4 for one in shapes)
    assert {one["dims"]["batch"] for one in shapes} == {BATCH}
    assert times["batch"] == BATCH
    assert min(times["together"], times["alone"]) > 0
    return path


def test_samples_share_runs_and_are_those_of_one_at_a_time(bundle):
    options = {"max_tokens": 12, "seed": 3, "temperature": 1.0}
    with Pipeline.load(bundle, engine="onnxruntime", threads=1) as pipeline:
        pipeline.batch_times = BatchTimes(batch=BATCH, together=1.0, alone=1.0)
        assert pipeline.most_together == BATCH
        together = pipeline.generate("ab", num_samples=4, **options)
        alone = [pipeline.generate("ab", sample_index=i, **options).result() for i in range(4)]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in together}) > 1


def test_a_batch_is_used_where_a_few_runs_say_that_it_pays(bundle):
    options = {"num_samples": BATCH, "max_tokens": 12, "seed": 3}
    found = []
    with Pipeline.load(bundle, engine="onnxruntime", threads=1) as pipeline:
        pipeline.generate("ab", **{**options, "num_samples": 1})
        assert pipeline.batch_times is None  # one text shares nothing
        assert pipeline.most_together == (BATCH if pipeline.batch_times.gain(BATCH) > 1 else 1)
        for seconds in (BATCH - 0.1, BATCH + 0.1):
            pipeline.batch_times = BatchTimes(batch=BATCH, together=seconds, alone=1.0)
            assert pipeline.most_together == (BATCH if seconds < BATCH else 1)
            with pipeline.together(BATCH - 1):
                assert not isinstance(pipeline.generate("ab")._loop, SharedGeneration)
            with pipeline.together(BATCH):
                shares = isinstance(pipeline.generate("ab")._loop, SharedGeneration)
            assert shares == (seconds < BATCH)
            found.append([one.token_ids for one in pipeline.generate("ab", **options)])
    assert found[0] == found[1]


def test_the_shape_that_is_timed_is_one_that_texts_take(bundle):
    with Pipeline.load(bundle, engine="onnxruntime", threads=1) as pipeline:
        seen = []
        pipeline.observer = lambda run: seen.append(run.spec.key)
        pipeline("ab", max_tokens=12)
        shape = usual_shape(pipeline.model)
        assert shape.batch == 1
        assert (shape.name, shape.rows) in {(name, dict(dims)["rows"]) for name, dims in seen}


def test_a_graph_that_mixes_texts_up_is_refused(bundle, monkeypatch):
    opened = open_bundle(bundle)
    engines = open_engines(opened, "onnxruntime", 1)
    inner = engines.engine

    def mixed(spec):
        engine = inner(spec)
        if spec.batch == 1:
            return engine
        run = engine.run

        def run_and_mix():
            run()
            for array in engine.outputs.values():
                array[...] = np.roll(array, 1, axis=0)

        monkeypatch.setattr(engine, "run", run_and_mix, raising=False)
        return engine

    monkeypatch.setattr(engines, "engine", mixed)
    with pytest.raises(EngineError, match="export without --batch"):
        compare_batches(opened.manifest, engines, precision="fp32", seed=1)
    monkeypatch.undo()
    engines.close()
