"""The desktop wing: from text to a checkpoint, in torch."""
