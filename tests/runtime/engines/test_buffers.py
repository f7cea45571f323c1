"""Which tensors share an array, and what all arrays take."""

from dataclasses import replace

import numpy as np
import pytest
from dlm_edge.runtime.bundle.manifest import TensorSpec
from dlm_edge.runtime.engines.buffers import buffers_of, bytes_by_role, host_buffers
from manifests import bare_spec
from toy_bundle import CACHE, VOCAB, toy_spec


def memory(rows, lifetime="request", role="memory"):
    return TensorSpec(name=role, dtype="float32", shape=(rows, 1, 8), role=role, lifetime=lifetime)


def encoder_and_reader():
    """A graph whose output is kept for a request, and one that reads it in two lengths."""
    encode = replace(bare_spec("encode", 16, 0), outputs=(memory(16),))
    readers = [replace(bare_spec("read", rows, 0), inputs=(memory(rows),)) for rows in (8, 16)]
    return encode, *readers


def test_a_smaller_context_is_a_prefix_of_the_cache_and_canvases_are_apart():
    small, large = toy_spec(context=4), toy_spec(context=8)
    buffers = host_buffers((small, large))
    one, other = (buffers.view(spec.tensor("kv"), spec) for spec in (small, large))
    other[:] = np.arange(8).reshape(-1, 1, 1, 1, 1, 1)
    np.testing.assert_array_equal(one, other[:4])
    canvases = [buffers.view(spec.tensor("canvas"), spec) for spec in (small, large)]
    assert not np.shares_memory(*canvases)
    logits = [buffers.view(spec.tensor("logits"), spec) for spec in (small, large)]
    assert np.shares_memory(*logits)


def test_what_one_graph_makes_for_a_request_another_reads_without_a_copy():
    encode, short, long = encoder_and_reader()
    buffers = host_buffers((encode, short, long))
    made = buffers.view(encode.outputs[0], encode)
    made[:] = 3.0
    for spec in (short, long):
        assert (buffers.view(spec.inputs[0], spec) == 3.0).all()


def test_outputs_of_a_run_are_no_inputs_of_another_graph():
    encode, short, _ = encoder_and_reader()
    encode = replace(encode, outputs=(memory(16, "run"),))
    buffers = host_buffers((encode, short))
    made = buffers.view(encode.outputs[0], encode)
    assert not np.shares_memory(made, buffers.view(short.inputs[0], short))


def test_rows_of_another_shape_are_another_cache():
    spec = toy_spec()
    wide = replace(
        spec,
        name="other",
        inputs=tuple(
            replace(item, shape=(4, 2, *CACHE[1:])) if item.role == "kv" else item
            for item in spec.inputs
        ),
    )
    buffers = host_buffers((spec, wide))
    assert not np.shares_memory(
        buffers.view(spec.tensor("kv"), spec), buffers.view(wide.tensor("kv"), wide)
    )


@pytest.mark.parametrize("ask", ["reserve", "view"])
def test_the_account_is_what_was_made(ask):
    specs = (toy_spec(context=4), toy_spec(context=8))
    buffers = host_buffers(specs)
    assert buffers.account() == {}
    row = 4 * int(np.prod(CACHE))
    wanted = {
        "kv": 8 * row, "logits": 4 * 4 * VOCAB, "kv_new": 4 * row, "inputs": 2 * (4 * 4 + 4),
    }  # fmt: skip
    if ask == "reserve":
        buffers.reserve()
        assert buffers.account() == wanted == bytes_by_role(buffers_of(specs).values())
    else:
        buffers.view(specs[0].tensor("kv"), specs[0])
        assert buffers.account() == {"kv": wanted["kv"]}
    buffers.clear()
    assert buffers.account() == {}


def test_the_caches_of_all_layers_are_one_part_of_the_account():
    own = {"dtype": "float32", "shape": (4, 1, 3), "lifetime": "request"}
    caches = [TensorSpec(name=f"keys.{n}", role=f"kv.keys.{n}", **own) for n in range(2)]
    spec = toy_spec(context=4)
    wider = replace(spec, inputs=(*spec.inputs, *caches))
    before, after = (bytes_by_role(buffers_of([each]).values()) for each in (spec, wider))
    assert after == before | {"kv": before["kv"] + 2 * 4 * 3 * 4}
