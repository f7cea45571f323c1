"""The family `dimba`: diffusion on token embeddings by bidirectional Mamba-2."""
