"""Several caches in one graph: what names them, and how rows get there."""

from dataclasses import replace

import numpy as np
import pytest
from dlm_edge.runtime.bundle.manifest import Member, TensorSpec
from dlm_edge.runtime.bundle.manifest_check import check_together
from dlm_edge.runtime.errors import BundleError
from dlm_edge.runtime.families.base import condition_inputs
from dlm_edge.runtime.families.window import append
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.side_by_side import for_batch
from manifests import denoise_spec, plain_manifest

CONTEXT, ROWS = 8, 4
MEMBERS = {
    name: Member(sha256="0" * 64, size=1) for name in ("graphs/denoise.onnx", "tokenizer.json")
}


def two_towers(**new):
    """A step over two caches of different shapes."""
    spec = denoise_spec(ROWS, CONTEXT, vocab=9, cache=(1, 2, 2, 1, 4))
    own = {"dtype": "float32", "shape": (ROWS, 1, 3), **new}
    held = TensorSpec(
        name="past", dtype="float32", shape=(CONTEXT, 1, 3), role="kv.causal", lifetime="request"
    )
    return replace(
        spec,
        inputs=(*spec.inputs, held),
        outputs=(*spec.outputs, TensorSpec(name="more", role="kv.causal_new", **own)),
    )


class Engine:
    def __init__(self, spec):
        self.spec = spec
        self.inputs, self.outputs = (
            {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in tensors}
            for tensors in (spec.inputs, spec.outputs)
        )


def test_new_rows_go_behind_those_of_their_own_cache():
    engine = Engine(two_towers())
    engine.outputs["kv_new"][...] = 1.0
    engine.outputs["more"][...] = 2.0
    append(NumpyOps(), engine, 3, 2)
    for name, value in (("kv", 1.0), ("past", 2.0)):
        held = engine.inputs[name].reshape(CONTEXT, -1)
        assert (held[3:5] == value).all()
        assert not held[:3].any()
        assert not held[5:].any()


def test_a_batch_is_the_second_axis_of_every_cache():
    spec = for_batch(two_towers(), 5)
    assert spec.tensor("kv.causal").shape == (CONTEXT, 5, 3)
    assert spec.tensor("kv.causal_new").shape == (ROWS, 5, 3)
    assert spec.tensor("canvas").shape == (5, ROWS)


def test_no_cache_is_a_condition():
    assert condition_inputs([two_towers()]) == {}


def test_a_manifest_may_have_several_caches_if_their_new_rows_fit():
    check_together(plain_manifest([two_towers()], members=MEMBERS))


@pytest.mark.parametrize(
    "new", [{"shape": (ROWS, 1, 4)}, {"dtype": "float16"}, {"shape": (ROWS + 1, 1, 3)}]
)
def test_new_rows_that_do_not_fit_their_cache_are_refused(new):
    with pytest.raises(BundleError, match=r"more"):
        check_together(plain_manifest([two_towers(**new)], members=MEMBERS))
