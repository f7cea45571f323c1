"""dlm-edge: take a diffusion language model from a desktop to a Jetson Orin Nano."""

__version__ = "0.1.0"
