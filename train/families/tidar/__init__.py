"""The family `tidar`: causal models that draft."""
