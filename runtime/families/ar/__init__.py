"""The family `ar`: causal models, one token per run."""
