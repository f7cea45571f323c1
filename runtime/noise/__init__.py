"""Noise schedules, transitions, score entropy and counter-based randomness."""
