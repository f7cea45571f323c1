from dlm_edge.jetson.graph.cost import Operation, peak_bytes
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def graphs(draw):
    """Steps in execution order: each writes one or two new values and reads some older ones."""
    steps, names, sizes = [], [], {}
    for index in range(draw(st.integers(1, 8))):
        reads = draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
        writes = [f"v{index}_{part}" for part in range(draw(st.integers(1, 2)))]
        sizes |= {name: draw(st.integers(0, 9)) for name in writes}
        names += writes
        steps.append(Operation(reads=tuple(reads), writes=tuple(writes)))
    return steps, sizes


def brute_force(steps, sizes):
    """Asks at every step, of every value, whether it is made already and read now or later."""
    peak = 0
    for now in range(len(steps)):
        alive = 0
        for name, size in sizes.items():
            made = next(i for i, step in enumerate(steps) if name in step.writes)
            read = [i for i, step in enumerate(steps) if name in step.reads]
            needed = max([made, *read]) >= now
            alive += size if made <= now and needed else 0
        peak = max(peak, alive)
    return peak


@given(graphs())
def test_the_peak_is_what_brute_force_finds(graph):
    assert peak_bytes(*graph) == brute_force(*graph)


def chain(in_place):
    return [
        Operation(reads=("x",), writes=("a",)),
        Operation(reads=("a",), writes=("b",), in_place=in_place),
        Operation(reads=("b",), writes=("c",), in_place=in_place),
    ]


def test_what_may_be_overwritten_is_counted_once():
    sizes = {"a": 8, "b": 8, "c": 8}
    assert peak_bytes(chain(in_place=False), sizes) == 16
    assert peak_bytes(chain(in_place=True), sizes) == 8


def test_what_is_still_read_or_of_another_size_is_not_overwritten():
    steps = [*chain(in_place=True), Operation(reads=("a", "c"), writes=("d",))]
    assert peak_bytes(steps, {"a": 8, "b": 8, "c": 8, "d": 1}) == 17
    assert peak_bytes(chain(in_place=True), {"a": 8, "b": 4, "c": 4}) == 12


def test_weights_and_inputs_cost_nothing_here():
    assert peak_bytes([Operation(reads=("weight", "input"), writes=("a",))], {"a": 3}) == 3
    assert peak_bytes([], {}) == 0
