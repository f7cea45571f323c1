"""Canvases: graph inputs recorded while real texts decode, and kept on disk."""
