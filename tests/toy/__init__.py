"""A family that only the tests know: latents, a source, guidance, and a primitive of its own.

It enters through the seams alone. What it needs and the shipped families do not: a canvas of
floats, a condition, two graphs of which one runs once per request, a batch of two texts over one
read of the weights, no cache, no mask.
"""
