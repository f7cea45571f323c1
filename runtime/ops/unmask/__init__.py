"""Primitive `unmask`: which masked positions a step commits."""
