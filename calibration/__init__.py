"""From a floating-point bundle to a quantised one: canvases, scales and the quality they cost."""
