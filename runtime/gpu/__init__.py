"""The GPU: device memory, streams, captured steps, kernels compiled and cached."""
