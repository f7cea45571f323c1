"""Exported graphs through a real TensorRT parser and builder, which need no GPU in TensorRT-RTX.

Needs the packages tensorrt-rtx-cu13-libs and tensorrt-rtx-cu13-bindings; skipped without them.
"""

import onnx
import pytest
from dlm_edge.export.fp16 import store_fp16
from dlm_edge.export.graph import Shape
from dlm_edge.export.trace import example_inputs
from tiny_checkpoint import BLOCK, CONTEXT

pytestmark = pytest.mark.trt


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_build_holds_every_shape(traced_bytes, tiny_graph, precision):
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    model = onnx.load_from_string(traced_bytes)
    if precision == "fp16":
        store_fp16(model)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    for shape in (Shape(block=BLOCK, context=CONTEXT), Shape(block=CONTEXT, context=8)):
        profile = builder.create_optimization_profile()
        for tensor, example in zip(
            tiny_graph.inputs, example_inputs(tiny_graph, shape), strict=True
        ):
            size = tuple(example.shape)
            profile.set_shape(tensor.name, size, size, size)
        config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
