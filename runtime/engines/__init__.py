"""Backends: the one place that makes a graph of a bundle executable."""
