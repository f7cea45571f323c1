"""Checkpoints: ours, Hugging Face's, by name or by folder."""
