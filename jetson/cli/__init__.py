"""The command `dlm-profile`."""
