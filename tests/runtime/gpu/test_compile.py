import numpy as np
import pytest
from dlm_edge.runtime.cache import cache_root
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu.compile import compile_cached


@pytest.fixture
def source(tmp_path):
    (tmp_path / "part.cuh").write_text("// part\n")
    path = tmp_path / "whole.cu"
    path.write_text(f'#include "part.cuh"\n// {np.random.default_rng().integers(2**62)}\n')
    return path


def counting():
    calls = []

    def compile_(text, headers):
        calls.append((text, dict(headers)))
        return b"image %d" % len(calls)

    return calls, compile_


def test_an_image_is_compiled_once_per_source_version_and_capability(source):
    calls, compile_ = counting()
    first = compile_cached(source, "12.6", (8, 7), compile_)
    assert compile_cached(source, "12.6", (8, 7), compile_) == first
    assert calls == [(source.read_bytes(), {"part.cuh": b"// part\n"})]
    compile_cached(source, "13.0", (8, 7), compile_)
    compile_cached(source, "12.6", (9, 0), compile_)
    assert len(calls) == 3


def test_a_changed_header_means_another_image(source):
    calls, compile_ = counting()
    compile_cached(source, "12.6", (8, 7), compile_)
    source.with_name("part.cuh").write_text("// another\n")
    compile_cached(source, "12.6", (8, 7), compile_)
    assert len(calls) == 2


def test_a_missing_header_is_named(source):
    source.with_name("part.cuh").unlink()
    with pytest.raises(DeviceError, match=r"whole\.cu includes part\.cuh, which is in none of"):
        compile_cached(source, "12.6", (8, 7), counting()[1])


DAMAGES = [lambda kept: kept[:-1], lambda kept: b"", lambda kept: kept * 2]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_compiled_again(source, damage):
    calls, compile_ = counting()
    compile_cached(source, "12.6", (8, 7), compile_)
    for path in (cache_root() / "kernels").glob("whole-*"):
        path.write_bytes(damage(path.read_bytes()))
    assert compile_cached(source, "12.6", (8, 7), compile_) == b"image 2"
    assert compile_cached(source, "12.6", (8, 7), compile_) == b"image 2"
    assert len(calls) == 2
