"""A training run from settings to checkpoint."""
