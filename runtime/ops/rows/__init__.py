"""Primitive `rows`: statistics of rows of logits, and draws from them."""
