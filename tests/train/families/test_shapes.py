"""The shapes that graphs are offered at, for what was asked and what was trained."""

import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.families.shapes import cached_shapes, canvas_shapes, causal_shapes


def cached(blocks=(), contexts=()):
    shapes = cached_shapes(blocks, contexts, trained=(4, 16), max_position=16)
    return [(shape.dims["rows"], shape.dims["context"]) for shape in shapes]


def causal(blocks=(), contexts=(), *, max_position=16, on_cpu=False):
    shapes = causal_shapes(blocks, contexts, max_position=max_position, on_cpu=on_cpu)
    return [(shape.dims["rows"], shape.dims["context"]) for shape in shapes]


def test_cached_shapes_are_listed_smallest_first_with_what_the_model_needs():
    small, large = [(4, 8), (8, 8)], [(4, 16), (8, 16), (16, 16)]
    # The whole canvas is also what the double of 8 would be at the smaller context.
    assert cached((8, 4), (16, 8)) == [*small, *large, (16, 8)]
    assert cached((5,), (16,)) == [(5, 16), (10, 16), (16, 8)]
    assert causal((8,), (16,)) == [(1, 16), (8, 16)]


def test_nothing_asked_for_gives_the_blocks_trained_on_at_half_and_all_of_the_context():
    assert cached() == [(4, 8), (8, 8), (4, 16), (8, 16), (16, 8)]
    assert causal() == [(1, 8), (1, 16), (16, 16)]


def test_on_a_cpu_a_causal_model_has_a_large_block_for_prompts_and_contexts_that_double():
    assert causal(on_cpu=True) == [(1, 16), (16, 16)]
    found = causal(max_position=8192, on_cpu=True)
    assert sorted({context for _, context in found}) == [128, 256, 512, 1024, 2048]
    assert [rows for rows, context in found if context == 128] == [1, 32]
    assert [rows for rows, context in found if context == 256] == [1, 32, 128]
    assert causal(contexts=(64,), max_position=8192, on_cpu=True) == [(1, 64), (32, 64), (128, 64)]


def test_a_model_that_knows_the_whole_canvas_alone_has_canvases_of_the_lengths_asked_for():
    def whole(*blocks):
        shapes = cached_shapes(blocks, (), trained=(64,), max_position=64)
        assert {(shape.purpose, shape.dims["context"]) for shape in shapes} == {("fill", 8)}
        return [shape.block for shape in shapes]

    assert (whole(), whole("full"), whole(16, "full"), whole(8, 16)) == (
        [64],
        [64],
        [16, 64],
        [8, 16],
    )


def test_a_public_model_of_many_positions_has_contexts_that_fit_and_no_canvas_unless_asked_for():
    found = cached_shapes((), (), trained=(32,), max_position=32768)
    assert {shape.dims["context"] for shape in found} == {1024, 2048}
    assert {shape.purpose for shape in found} == {"denoise", "advance"}
    assert cached_shapes(("full",), (), trained=(32,), max_position=4096)[-1].dims["rows"] == 4096


def test_full_alone_gives_the_whole_canvas_alone():
    assert cached(("full",)) == [(16, 8)]


def test_a_causal_model_has_no_whole_canvas():
    with pytest.raises(ConfigError, match="--block full"):
        causal(("full",))


@pytest.mark.parametrize(
    ("given", "words"), [(((17,), ()), "--block 17"), (((), (17,)), "--context 17")]
)
def test_sizes_beyond_the_positions_trained_are_named(given, words):
    for shapes in (cached, causal):
        with pytest.raises(ConfigError, match=words):
            shapes(*given)


def test_a_canvas_without_a_cache_has_one_shape_per_length():
    def lengths(*blocks):
        shapes = canvas_shapes(blocks, (), trained=(8, 16), max_position=16)
        assert not any("context" in shape.dims for shape in shapes)
        return [shape.block for shape in shapes]

    assert lengths() == [8, 16]
    assert lengths("full", 4) == [4, 16]
    assert lengths("full", 16) == [16]
    with pytest.raises(ConfigError, match="--block 17"):
        lengths(17)


def test_a_context_for_a_graph_without_a_cache_is_refused():
    for shapes in (canvas_shapes, cached_shapes):
        with pytest.raises(ConfigError, match="--context is the room"):
            shapes((), (8,), trained=(16,), max_position=16)


def test_each_cached_shape_says_what_it_is_for():
    shapes = cached_shapes((16, 32), (128,), trained=(16, 32), max_position=128)
    assert [(shape.dims["rows"], shape.purpose, shape.block) for shape in shapes] == [
        (16, "denoise", 16), (32, "denoise", 32), (64, "advance", 32), (128, "fill", 128),
    ]  # fmt: skip
    shapes = causal_shapes((8,), (16,), max_position=16, on_cpu=False)
    assert [(shape.purpose, shape.block) for shape in shapes] == [("step", None), ("prefill", None)]
