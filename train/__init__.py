"""Training on the desktop: from text to a checkpoint, in torch."""
