"""Scales, smoothing and rounding: a float32 graph becomes a quantised one."""
