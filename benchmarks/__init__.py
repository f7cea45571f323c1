"""Measures quality and speed; run the modules with `python -m dlm_edge.benchmarks.NAME --help`."""
