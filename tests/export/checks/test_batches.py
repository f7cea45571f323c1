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
from tiny_checkpoint import make_checkpoint

BATCH = 3


@pytest.fixture(scope="module", params=["mdlm", "ar", "tidar"])
def bundle(request, checkpoint, causal_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("batches") / f"{request.param}.dlm"
    drafting = path.with_name("draft")
    make_checkpoint(drafting, "tidar", block_sizes="3", mask_token_id=1)
    source = {"mdlm": checkpoint, "ar": causal_checkpoint, "tidar": drafting}[request.param]
    report = export_checkpoint(source, path, ExportSettings(batch=BATCH))
    assert all(one["max_relative_error"] < 1e-4 for one in report["batches"])
    assert {one["dims"]["batch"] for one in report["batches"]} == {BATCH}
    return path


def test_samples_share_runs_and_are_those_of_one_at_a_time(bundle):
    options = {"max_tokens": 12, "seed": 3, "temperature": 1.0}
    with Pipeline.load(bundle, engine="onnxruntime", threads=1) as pipeline:
        assert pipeline.most_together == BATCH
        together = pipeline.generate("ab", num_samples=4, **options)
        alone = [pipeline.generate("ab", sample_index=i, **options).result() for i in range(4)]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in together}) > 1


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
