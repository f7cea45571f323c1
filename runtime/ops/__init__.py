"""The sampling primitives that update rules call."""
