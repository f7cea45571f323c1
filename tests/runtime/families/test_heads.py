"""Heads of a bundle that was damaged: refused before a run meets what does not fit."""

import pytest
from dlm_edge.runtime.bundle.manifest import GraphSpec, TensorSpec
from dlm_edge.runtime.errors import BundleError
from dlm_edge.runtime.families.heads import Heads

TRUNK = GraphSpec(
    name="denoise",
    file="graphs/denoise.onnx",
    dims={"batch": 1, "rows": 4, "context": 8},
    purpose="denoise",
    block=None,
    precision="fp32",
    inputs=(TensorSpec(name="ids", dtype="int32", shape=(1, 4), role="canvas"),),
    outputs=(TensorSpec(name="hidden", dtype="float32", shape=(1, 4, 8), role="hidden"),),
)


def head(taken=(1, 4, 8), made=(1, 4, 20), taken_role="hidden_rows", made_role="logits"):
    return GraphSpec(
        name="head",
        file="graphs/head.onnx",
        dims={"batch": 1, "rows": 4},
        purpose="head",
        block=None,
        precision="fp32",
        inputs=(TensorSpec(name="rows", dtype="float32", shape=taken, role=taken_role),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=made, role=made_role),),
    )


def test_a_head_that_fits_its_trunk_is_taken():
    assert Heads([TRUNK, head()]).run_of(3).rows == 4
    assert not Heads([TRUNK])


@pytest.mark.parametrize(
    "changes",
    [
        {"taken": (1, 4, 9)},
        {"taken": (1, 32, 8)},
        {"taken": (4, 8)},
        {"taken_role": "canvas"},
        {"made_role": "canvas"},
        {"made": (1, 3, 20)},
    ],
)
def test_a_head_that_does_not_fit_is_refused(changes):
    with pytest.raises(BundleError, match=r"graph head .*export it again"):
        Heads([TRUNK, head(**changes)])
