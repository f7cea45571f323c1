"""The family `mdlm`: masked diffusion."""
