import onnx
import pytest
from dlm_edge.runtime.bundle.onnx_scan import check_external_data
from dlm_edge.runtime.errors import BundleError
from foreign_bundles import require_one_line
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from toy_bundle import toy_model

SIZES = {"graphs/g.onnx": 100, "graphs/g.weights": 50}


def external(location="g.weights", offset="0", length="50"):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(nodes=(), initializers=()):
    return helper.make_graph(list(nodes), "g", [], [], list(initializers))


def places(tensor):
    """The tensor in every place of a model that can hold one."""
    sparse = onnx.SparseTensorProto(values=tensor, indices=tensor, dims=[2])
    node = helper.make_node("Constant", [], ["x"])
    for make in ({"value": tensor}, {"value": sparse}, {"values": [tensor]}):
        ((name, value),) = make.items()
        inside = onnx.NodeProto()
        inside.CopyFrom(node)
        inside.attribute.append(helper.make_attribute(name, value))
        yield helper.make_model(graph([inside]))
        branch = helper.make_node("If", ["c"], ["y"], then_branch=graph([inside]))
        yield helper.make_model(graph([branch]))
    yield helper.make_model(graph(initializers=[tensor]))
    model = helper.make_model(graph())
    model.graph.sparse_initializer.append(sparse)
    yield model
    model = helper.make_model(graph())
    model.functions.add(name="f").node.append(inside)
    yield model
    model = helper.make_model(graph())
    model.training_info.add().algorithm.CopyFrom(graph(initializers=[tensor]))
    yield model


def check(model):
    check_external_data("graphs/g.onnx", model.SerializeToString(), SIZES)


def test_weights_in_a_member_are_accepted_wherever_they_hang():
    for model in places(external()):
        check(model)


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../g.weights", "x/../g.weights", "", "g", "..\\g", "graphs/g.weights"],
)
def test_weights_outside_the_members_are_refused_wherever_they_hang(location):
    for model in places(external(location)):
        with pytest.raises(BundleError, match="no member"):
            check(model)


@pytest.mark.parametrize(("offset", "length"), [("1", "50"), ("-1", "1"), ("51", "0"), ("x", "1")])
def test_weights_beyond_the_member_are_refused(offset, length):
    with pytest.raises(BundleError):
        check(helper.make_model(graph(initializers=[external(offset=offset, length=length)])))


def test_a_graph_without_external_weights_needs_no_member():
    check_external_data("graphs/g.onnx", toy_model().SerializeToString(), {})


def test_a_graph_nested_without_end_is_refused():
    inner = graph(initializers=[external()])
    for _ in range(30):
        inner = graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)])
    with pytest.raises(BundleError, match="nested"):
        check(helper.make_model(inner))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    try:
        check_external_data("g.onnx", data, {})
    except BundleError as error:
        require_one_line(error)


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_damaged_graph_never_reaches_a_foreign_file(at, value):
    data = bytearray(helper.make_model(graph(initializers=[external()])).SerializeToString())
    data[at % len(data)] = value
    try:
        check_external_data("graphs/g.onnx", bytes(data), SIZES)
    except BundleError:
        return
    try:
        model = onnx.load_from_string(bytes(data))
    except Exception:
        return
    for item in model.graph.initializer:
        for entry in item.external_data:
            assert entry.key != "location" or entry.value == "g.weights"
