"""Damage that must not hurt: seeded campaigns against every reader, decoder and writer.

`make damage` runs them for as long as one likes and keeps counts; `test_damage.py` is the short
form. A case is a number: the same campaign, seed and number give the same damage.
"""
