"""The family `sedd`: score entropy."""
