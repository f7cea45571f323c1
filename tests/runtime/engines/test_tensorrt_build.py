"""Kernel times, on a stand-in for a builder config: TensorRT-RTX refuses none and measures none."""

import pytest
from dlm_edge.runtime.engines.tensorrt_build import attach_timings, measured_timings


class Times:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data


class Config:
    """`unread` data cannot be read at all, `refused` data is another GPU's."""

    def __init__(self, unread=None, refused=None):
        self._unread, self._refused, self._attached = unread, refused, None

    def create_timing_cache(self, serialized_timing_cache):
        return None if serialized_timing_cache == self._unread else Times(serialized_timing_cache)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.data == self._refused:
            return False
        self._attached = cache
        return True

    def get_timing_cache(self):
        return self._attached


def test_a_builder_without_a_set_of_times_gives_none():
    assert measured_timings(Config()) == b""


@pytest.mark.parametrize(
    ("config", "known", "attached"),
    [
        (Config(), b"", b""),
        (Config(), b"old", b"old"),
        (Config(unread=b"old"), b"old", b""),
        (Config(refused=b"old"), b"old", b""),
    ],
)
def test_a_set_is_attached_before_every_build(config, known, attached):
    attach_timings(config, known)
    assert config.get_timing_cache() is not None
    assert measured_timings(config) == attached
