import onnx_ir as ir
from dlm_edge.calibration.layers import find_layers
from small_graphs import ROLES, set_weight, small_graph, weights_of


def by_name(model):
    return {layer.name: layer for layer in find_layers(model, ROLES)}


def test_products_and_lookups_are_found_under_their_parameters_names():
    layers = by_name(small_graph())
    assert list(layers) == ["embed", "mlp.up", "mlp.down"]
    assert layers["embed"].kind == "tied"
    assert layers["embed"].lookups == ("x",)
    assert layers["embed"].products == ("logits",)
    assert layers["embed"].out_axis == 0
    assert layers["mlp.up"].inputs == ("normed",)
    assert layers["mlp.up"].out_axis == 1


def test_only_the_last_product_is_a_head():
    for tied, name in ((True, "embed"), (False, "head")):
        heads = [layer.name for layer in by_name(small_graph(tied=tied)).values() if layer.head]
        assert heads == [name]


def test_an_embedding_alone_can_be_stored_small_but_not_multiplied_in_integers():
    layer = by_name(small_graph(tied=False))["embed"]
    assert layer.kind == "embedding"
    assert layer.precisions == ("int8-weight", "float")


def test_what_does_not_depend_on_the_canvas_is_left_alone():
    layers = by_name(small_graph(timed=True))
    assert layers["time"].precisions == ("float",)
    assert all(layer.quantizable for name, layer in layers.items() if name != "time")


def test_a_graph_without_a_canvas_depends_on_all_its_inputs():
    layers = find_layers(small_graph(timed=True), {})
    assert all(layer.quantizable for layer in layers)


def test_a_gemm_that_reads_its_weight_transposed_counts_rows():
    model = small_graph(tied=False)
    product = model.graph[-1]
    product.op_type = "Gemm"
    product.attributes.add(ir.AttrInt64("transB", 1))
    set_weight(model, "model.head.weight", weights_of(model)["model.head.weight"].T.copy())
    assert by_name(model)["head"].out_axis == 0


def test_products_of_two_activations_are_no_layers(traced):
    """Attention multiplies queries with keys, neither of them constant."""
    model, roles = traced
    names = [layer.name for layer in find_layers(model, roles)]
    assert names[0] == "embed"
    assert len(names) == 1 + 4 * 2
    assert all(name == "embed" or name.startswith("trunk.layers.") for name in names)
