"""The commands `dlm-run` and `dlm-eval`, and what all commands share."""
