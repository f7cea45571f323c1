"""The forms that a target's graphs take: how fp16 and int8 are written into a float32 graph."""
