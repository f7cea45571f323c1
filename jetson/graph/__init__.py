"""ONNX files read without onnx: nodes, shapes, cost, values alive at once."""
