"""Layer clocks on the real bindings, which can be told of a layer without a GPU."""

import pytest
from dlm_edge.runtime.engines.tensorrt import layer_profiler, layer_times

pytestmark = pytest.mark.trt


def test_a_profiler_of_the_real_bindings_keeps_every_call(trt):
    profiler = layer_profiler(trt)
    assert isinstance(profiler, trt.IProfiler)
    for milliseconds in (3.0, 1.0, 2.0):
        profiler.report_layer_time("{ForeignNode[head]}", milliseconds)
    profiler.report_layer_time("Reformatting CopyNode for Input Tensor 0", 0.5)
    times = layer_times(profiler.heard, 640)
    assert [(la.name, la.kind, la.calls) for la in times.layers] == [
        ("{ForeignNode[head]}", "fused", 3),
        ("Reformatting CopyNode for Input Tensor 0", "reformat", 1),
    ]
    assert times.layers[0].seconds == pytest.approx(0.002)
    assert times.allocator == {"scratch": 640}


def test_the_layer_that_takes_most_comes_first():
    times = layer_times({"once": [3.0], "often": [1.0] * 5, "rarely": [0.5]}, 0)
    assert [layer.name for layer in times.layers] == ["often", "once", "rarely"]
