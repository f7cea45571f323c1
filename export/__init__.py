"""From a checkpoint to a bundle: trace, check against torch, pack."""
