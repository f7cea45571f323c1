"""The family `sedd`: score-entropy diffusion over whole canvases."""
