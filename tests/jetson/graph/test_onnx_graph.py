import numpy as np
import onnx
import pytest
from dlm_edge.jetson.graph.onnx_graph import DTYPES, read_graph
from dlm_edge.runtime.errors import BundleError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from toy_bundle import toy_model


def same_graph(data):
    """Compares what we read with what the onnx package reads."""
    found, model = read_graph(data), onnx.load_from_string(data)
    graph = model.graph
    assert [(n.op, n.inputs, n.outputs) for n in found.nodes] == [
        (n.op_type, tuple(n.input), tuple(n.output)) for n in graph.node
    ]
    for ours, theirs in zip(found.nodes, graph.node, strict=True):
        for attribute in theirs.attribute:
            value = helper.get_attribute_value(attribute)
            read = ours.attributes[attribute.name]
            if isinstance(value, TensorProto):
                assert np.array_equal(read.value, numpy_helper.to_array(value))
            else:
                value = value.decode() if isinstance(value, bytes) else value
                assert read == (tuple(value) if isinstance(value, list) else value)
    for item in graph.initializer:
        read = found.initialisers[item.name]
        assert (read.shape, read.dtype) == (tuple(item.dims), DTYPES[item.data_type])
        if item.data_location != TensorProto.EXTERNAL and read.value is not None:
            assert np.array_equal(read.value, numpy_helper.to_array(item))
    for ours, theirs in ((found.inputs, graph.input), (found.outputs, graph.output)):
        assert [port.name for port in ours] == [item.name for item in theirs]
        for port, item in zip(ours, theirs, strict=True):
            dims = item.type.tensor_type.shape.dim
            assert port.shape == tuple(d.dim_param or d.dim_value for d in dims)
            assert port.dtype == DTYPES[item.type.tensor_type.elem_type]


def test_a_graph_by_hand_is_read_as_onnx_reads_it():
    same_graph(toy_model().SerializeToString())


def test_an_exported_graph_is_read_as_onnx_reads_it(typed_draft):
    same_graph(typed_draft.member("graphs/denoise.onnx").read_bytes())


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float16", "bool", "int8"])
@pytest.mark.parametrize("raw", [True, False])
def test_small_values_are_read_however_they_are_stored(dtype, raw):
    array = np.array([[0, 1], [1, 0]], dtype)
    if raw:
        tensor = numpy_helper.from_array(array, "w")
    else:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = helper.make_tensor("w", kind, array.shape, array.reshape(-1).tolist())
    graph = helper.make_graph([], "g", [], [], [tensor])
    read = read_graph(helper.make_model(graph).SerializeToString()).initialisers["w"]
    assert np.array_equal(read.value, array)


def test_attributes_of_zero_and_empty_lists_are_kept():
    node = helper.make_node("Concat", ["a"], ["b"], axis=0)
    node.attribute.append(onnx.AttributeProto(name="axes", type=onnx.AttributeProto.INTS))
    graph = helper.make_graph([node], "g", [], [])
    (read,) = read_graph(helper.make_model(graph).SerializeToString()).nodes
    assert read.attributes == {"axis": 0, "axes": ()}


@pytest.mark.parametrize("data", [b"", b"\x08\x0a", b"no graph at all", b"\x3a\x05ab"])
def test_other_bytes_are_refused_in_one_line(data):
    with pytest.raises(BundleError, match="export it again") as caught:
        read_graph(data, "denoise.onnx")
    assert "\n" not in str(caught.value)


@given(at=st.integers(0, 5000), value=st.integers(0, 255))
def test_a_damaged_graph_is_read_or_refused(at, value):
    data = bytearray(toy_model().SerializeToString())
    data[at % len(data)] = value
    try:
        read_graph(bytes(data))
    except BundleError as error:
        assert "\n" not in str(error)
