"""What a machine lacks: `dlm-profile --doctor`."""
