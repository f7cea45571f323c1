"""A PyTorch module as ONNX graphs: traced, typed, shared, linted."""
