"""The primitives that update rules call, in NumPy and as CUDA kernels."""
