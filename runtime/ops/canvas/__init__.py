"""Canvases of ids, which the primitives `unmask` and `transition` share."""
