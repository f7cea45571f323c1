"""The family `ar`: causal models."""
