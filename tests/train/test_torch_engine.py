"""A checkpoint's modules as engines: shared buffers, the runtime's loop and bound over them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dlm_edge.runtime.errors import EngineError
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.torch_engine import TorchEngineSet
from manifests import find_shape


@pytest.fixture
def engines():
    torch.manual_seed(0)
    family = FAMILIES["mdlm"]
    config = family.make_config(
        {"dim": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 20, "context": 16,
         "eos_token_id": 0, "mask_token_id": 1, "block_sizes": "4,full"}
    )  # fmt: skip
    model = family.make_model(config["model"]).eval()
    return TorchEngineSet(family.graphs(model, config))


def run(engine, ids, start):
    engine.inputs["ids"][:] = ids
    engine.inputs["start"][:] = start
    engine.run()
    return engine.outputs["logits"].copy()


def test_a_smaller_context_is_a_prefix_of_the_one_cache(engines):
    small, large = (
        engines.engine(find_shape(engines.specs, "denoise", 4, 8)),
        engines.engine(find_shape(engines.specs, "denoise", 4, 16)),
    )
    rng = np.random.default_rng(0)
    large.inputs["kv"][:] = rng.normal(size=large.inputs["kv"].shape)
    assert np.shares_memory(small.inputs["kv"], large.inputs["kv"])
    ids = np.array([[2, 1, 1, 5]])
    np.testing.assert_allclose(run(small, ids, 7), run(large, ids, 7), atol=1e-5)


def test_rows_from_start_on_are_ignored_whatever_they_hold(engines):
    engine = engines.engine(find_shape(engines.specs, "denoise", 4, 16))
    ids = np.array([[2, 1, 1, 5]])
    before = run(engine, ids, 4)
    engine.inputs["kv"][4:] = 1e4
    np.testing.assert_array_equal(run(engine, ids, 4), before)


def test_an_unknown_shape_is_refused_by_name(engines):
    known = find_shape(engines.specs, "denoise", 4, 16)
    with pytest.raises(EngineError, match=r"no graph denoise \(rows 5, context 16\)"):
        engines.engine(replace(known, dims={**known.dims, "rows": 5}))


def test_a_failing_run_is_an_engine_error(engines):
    engine = engines.engine(find_shape(engines.specs, "denoise", 4, 8))
    with pytest.raises(EngineError, match="PyTorch: graph denoise failed"):
        run(engine, np.array([[2, 1, 99, 5]]), 0)
