"""What a request brings beside its prompt: written once, refused if it does not fit."""

from dataclasses import replace

import numpy as np
import pytest
from dlm_edge.runtime.bundle.manifest import TensorSpec
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.base import Request, condition_inputs
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import Generation
from table_engines import TableEngines, hashed, make_manifest

V = 12
SOURCE = TensorSpec(
    name="source", dtype="float32", shape=(3, 1, 4), role="source", lifetime="request"
)


class Conditioned(TableEngines):
    """Shapes that share one condition, as engines do."""

    def __init__(self, shapes, *, causal=False, shape=SOURCE.shape):
        super().__init__(hashed(V, causal=causal), shapes, V)
        source = replace(SOURCE, shape=shape)
        self.specs = tuple(replace(spec, inputs=(*spec.inputs, source)) for spec in self.specs)
        self.source = np.zeros(shape, np.float32)
        self.seen = []

    def engine(self, spec):
        engine = super().engine(spec)
        if "source" not in engine.inputs:
            run = engine.run
            engine.inputs["source"] = self.source

            def watched():
                self.seen.append(self.source.copy())
                run()

            engine.run = watched
        return engine


def request(**conditions):
    return Request(
        prompt_ids=(0, 3, 4),
        max_tokens=9,
        seed=0,
        sample_index=0,
        conditions=conditions,
        banned_ids=(0,),
    )


def decode(engines, asked):
    model = load_model(make_manifest(engines), engines)
    rule = model.start(asked)
    while not rule.done:
        engine = engines.engine(rule.next_run())
        rule.feed(engine)
        engine.run()
        rule.update(engine)
        rule.read()
    return rule.tokens


def test_a_condition_is_there_in_every_run_of_every_shape():
    engines = Conditioned([(4, 4), (4, 8)])
    given = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    decode(engines, request(source=given))
    assert {context for _, context, *_ in engines.runs} == {4, 8}
    assert all(np.array_equal(found, given) for found in engines.seen)


def test_a_condition_may_be_a_scalar():
    engines = Conditioned([(4, 8)], shape=())
    decode(engines, request(source=np.array(1.5, np.float32)))
    assert {found.item() for found in engines.seen} == {1.5}


def test_a_cache_and_what_another_graph_makes_are_no_conditions():
    engines = Conditioned([(4, 8)])
    assert set(condition_inputs(engines.specs)) == {"source"}
    encode = replace(engines.specs[0], name="encode", inputs=(), outputs=(SOURCE,))
    assert condition_inputs((encode, *engines.specs)) == {}


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({}, "conditions are source, the request has none"),
        ({"sauce": np.zeros((3, 1, 4))}, "has sauce"),
        (
            {"source": np.zeros((2, 1, 4), np.float32)},
            r"float32 \(2, 1, 4\), the bundle takes float32 \(3, 1, 4\)",
        ),
        ({"source": np.zeros((3, 1, 4))}, r"float64 \(3, 1, 4\), the bundle takes float32"),
    ],
)
def test_conditions_that_do_not_fit_are_one_line(conditions, words):
    with pytest.raises(ConfigError, match=words):
        decode(Conditioned([(4, 8)]), request(**conditions))


def test_a_condition_for_a_bundle_without_any_is_refused():
    engines = TableEngines(hashed(V), [(4, 8)], V)
    with pytest.raises(ConfigError, match="conditions are none, the request has source"):
        decode(engines, request(source=np.zeros((3, 1, 4))))


def test_a_cache_is_reused_under_the_same_conditions_only():
    engines = Conditioned([(4, 4), (4, 8)], causal=True)
    model = load_model(make_manifest(engines, family="ar"), engines)
    given = {"source": np.ones(SOURCE.shape, np.float32)}
    generation = Generation(model, replace(request(**given), max_tokens=4))
    assert list(generation)
    held = generation.held.ids
    assert held
    rule, same = model.settings(None), {"source": np.ones(SOURCE.shape, np.float32)}
    assert generation.held.num_common(held, rule, same) == len(held)
    assert (
        generation.held.num_common(held, rule, {"source": np.zeros(SOURCE.shape, np.float32)}) == 0
    )
    assert generation.held.num_common(held, rule, {}) == 0
    given["source"][:] = 2  # in place
    assert generation.held.num_common(held, rule, given) == 0
