"""The family `dimba`: diffusion on latents, rounded to tokens at the end."""
