"""Canvas sets: strata and weights."""

import numpy as np
import pytest
from dlm_edge.calibration.canvases.canvases import CanvasSet, Inputs, RecordedRun
from manifests import bare_spec
from toy_bundle import CACHE, toy_manifest


def canvas(ratio=0.5, rows=2, seed=0, **changes):
    rng = np.random.default_rng(seed)
    kv = np.zeros((256, *CACHE), np.float32)
    kv[:rows] = rng.standard_normal((rows, *CACHE))
    fields = {
        "spec": bare_spec("denoise", 4, 8),
        "inputs": Inputs(
            {
                "ids": rng.integers(2, 20, (1, 4)).astype(np.int32),
                "start": np.array([rows], np.int32),
                "kv": kv,
            }
        ),
        "mask_ratio": ratio,
        "progress": 0.25,
        "committing": np.array([False, True, False, True]),
        "weight": 1.25,
        "source": "decode",
    }
    return RecordedRun(**{**fields, **changes})


@pytest.mark.parametrize(
    ("ratio", "decile"), [(0.0, 0), (0.01, 1), (0.1, 1), (0.3, 3), (0.75, 8), (0.9, 9), (1.0, 10)]
)
def test_decile_is_the_ratio_in_tenths_rounded_up(ratio, decile):
    assert canvas(ratio).decile == decile


def test_positions_about_to_be_committed_weigh_double():
    assert canvas().row_weights.tolist() == [1.25, 2.5, 1.25, 2.5]


def test_missing_lists_only_deciles_that_a_block_can_have():
    specs = toy_manifest().graphs
    empty = CanvasSet(items=(), model_sha256="", recipe={})
    wanted = empty.missing(specs, blocks=(4,), masked=True)
    large = specs[1].key
    assert [decile for key, decile in wanted if key == large] == [3, 5, 8, 10]
    made = CanvasSet(items=(canvas(0.5),), model_sha256="", recipe={})
    assert (large, 5) not in made.missing(specs, blocks=(4,), masked=True)
    assert [decile for _, decile in empty.missing(specs, blocks=(4,), masked=False)] == [0, 0]
    assert empty.missing(specs, blocks=(2,), masked=True) == []
