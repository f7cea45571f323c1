"""How well a bundle predicts, whether it computes as exported, and on which machine."""
