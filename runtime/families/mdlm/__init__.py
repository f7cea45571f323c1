"""The family `mdlm`: masked diffusion, whole canvas or by blocks."""
