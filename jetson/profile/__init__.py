"""Measuring a bundle: one run, a sweep, and the prediction beside them."""
