"""The ops on a device: what the CUDA forms of primitives share."""
