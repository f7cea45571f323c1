"""Texts that share runs: each is the same alone, in any batch, and beside any others."""

import numpy as np
import pytest
from batch_engines import BatchEngines
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.side_by_side import SideBySide, batches, for_batch
from draft_engines import DraftEngines, Model, draft_manifest, draft_request
from emulation.device import EmulatedDevice
from emulation.engines import DeviceEngines
from rules import decoding
from score_engines import ScoreEngines, score_manifest
from table_engines import TableEngines, hashed, make_manifest

V = 70
MASK = V - 1
SHAPES = [(8, 16), (8, 64), (16, 64), (64, 8)]


def draft_requests(**heat):
    """Texts whose first runs have different layouts, one of them longer than a run."""
    return [
        draft_request(
            prompt_ids=(0, *range(3, 5 + 5 * index)), max_tokens=9 + 6 * index, sample_index=index,
            **heat,
        )
        for index in range(4)
    ]  # fmt: skip


def never_ending(prefix, block):
    logits = hashed(V)(prefix, block).copy()
    logits[:, 0] = -40
    return logits


def requests(settings, count=4, **fields):
    """Prompts and texts of different lengths, two of them samples of one prompt."""
    return [
        Request(
            prompt_ids=(0, *range(3, 5 + 7 * (index // 2))), max_tokens=14 + 9 * index, seed=5,
            sample_index=index, settings=settings, **fields,
        )
        for index in range(count)
    ]  # fmt: skip


def decode(make, manifest_of, asked, *, on_device):
    """The results of requests side by side, read in another order, and the runs they took."""
    engines = BatchEngines(make, len(asked))
    device = EmulatedDevice() if on_device else None
    ops = NumpyOps() if device is None else CudaOps(device)
    used = engines if device is None else DeviceEngines(engines, device)
    group = SideBySide(load_model(manifest_of(engines), used, ops), len(asked))
    texts = [group.start(request) for request in asked]
    for text in reversed(texts):
        list(text)
    return [text.result for text in texts], engines.num_runs


def join(make, manifest_of, asked, *, on_device):
    """The results of requests that take the slots of those that have ended, two at a time."""
    engines = BatchEngines(make, 2)
    device = EmulatedDevice() if on_device else None
    ops = NumpyOps() if device is None else CudaOps(device)
    used = engines if device is None else DeviceEngines(engines, device)
    group = SideBySide(load_model(manifest_of(engines), used, ops), 2)
    waiting, texts = list(asked), []
    while waiting or not all(text.done for text in texts):
        while waiting and group.num_free:
            texts.append(group.start(waiting.pop(0)))
        for text in texts:
            if not text.done:
                text.step()
    return [text.result for text in texts]


def check(make, manifest_of, asked, *, on_device):
    own = make()
    model = load_model(manifest_of(own), own, NumpyOps())
    alone = [generate(model, request) for request in asked]
    for some in (asked, asked[1:], [asked[3], asked[0]]):
        found, num_runs = decode(make, manifest_of, some, on_device=on_device)
        wanted = [alone[asked.index(request)] for request in some]
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        assert [one.finish_reason for one in found] == [one.finish_reason for one in wanted]
        assert num_runs <= sum(one.nfe for one in found) * (0.8 if some is asked else 1.0)
    joined = join(make, manifest_of, asked, on_device=on_device)
    assert [one.token_ids for one in joined] == [one.token_ids for one in alone]
    return alone


@pytest.mark.parametrize("on_device", [False, True], ids=["numpy", "device"])
@pytest.mark.parametrize("rule", ["threshold", "low_confidence", "random", "first_hitting"])
@pytest.mark.parametrize("splits", [False, True], ids=["store", "advance"])
def test_masked_texts_are_the_same_alone_and_side_by_side(rule, splits, on_device):
    settings = decoding(rule=rule, temperature=1.0)
    make = lambda: TableEngines(never_ending, SHAPES, V, splits=splits)  # noqa: E731
    alone = check(make, make_manifest, requests(settings), on_device=on_device)
    assert len({one.new_token_ids for one in alone}) == 4


@pytest.mark.parametrize("on_device", [False, True], ids=["numpy", "device"])
def test_causal_texts_are_the_same_alone_and_side_by_side(on_device):
    settings = decoding(rule="next_token", temperature=1.0)
    make = lambda: TableEngines(hashed(V, causal=True), [(1, 64), (8, 64)], V)  # noqa: E731
    manifest = lambda engines: make_manifest(engines, family="ar")  # noqa: E731
    check(make, manifest, requests(settings), on_device=on_device)


@pytest.mark.parametrize("on_device", [False, True], ids=["numpy", "device"])
@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_moving_texts_are_the_same_alone_and_side_by_side(graph, on_device):
    def score(ids, sigma):
        rows = np.random.default_rng((ids % V).tolist()).normal(size=(len(ids), V)) - 1
        rows[np.arange(len(ids)), ids % V] = 0  # of an idle slot, anything may be read
        return rows

    settings = decoding(rule="tweedie", steps=6)
    make = lambda: ScoreEngines(score, [24, 64], V)  # noqa: E731
    manifest = lambda engines: score_manifest(engines, graph)  # noqa: E731
    check(make, manifest, requests(settings), on_device=on_device)


@pytest.mark.parametrize("on_device", [False, True], ids=["numpy", "device"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "head apart"])
@pytest.mark.parametrize("heat", [{}, {"temperature": 0.9, "beta": 0.5}], ids=str)
def test_drafting_texts_are_the_same_alone_and_side_by_side(heat, split, on_device):
    def make():
        return DraftEngines(Model(41, seed=3, agreement=2.0), [3], (16, 48), split=split)

    def manifest(engines):
        return draft_manifest(engines, vocab_size=41)

    asked = draft_requests(**heat)
    alone = check(make, manifest, asked, on_device=on_device)
    assert any(one.tokens_per_nfe > 1.2 for one in alone)


@pytest.mark.parametrize("on_device", [False, True], ids=["numpy", "device"])
def test_a_text_between_its_two_graphs_goes_before_others(on_device):
    """Three texts still read their prompts when the first has hidden rows for its head."""

    def make():
        return DraftEngines(Model(41, seed=3), [3], (64,), split=True)

    def manifest(engines):
        return draft_manifest(engines, vocab_size=41)

    asked = [
        draft_request(
            prompt_ids=(0, *range(3, 5 + more)),
            sample_index=more,
            max_tokens=24,
            seed=1,
            temperature=1.0,
        )
        for more in (11, 31, 32, 33)
    ]
    check(make, manifest, asked, on_device=on_device)


FAMILIES = {
    "mdlm": (
        lambda: TableEngines(never_ending, SHAPES, V),
        make_manifest,
        {"rule": "low_confidence", "temperature": 1.0},
        2,  # sample, commit
    ),
    "ar": (
        lambda: TableEngines(never_ending, [(1, 64), (8, 64)], V),
        lambda engines: make_manifest(engines, family="ar"),
        {"rule": "next_token", "temperature": 1.0},
        4,  # rows into the cache, begin, sample, commit
    ),
    "tidar": (
        lambda: DraftEngines(Model(41, seed=3, agreement=2.0), [3], (16, 48)),
        draft_manifest,
        {"rule": "draft_verify", "temperature": 1.0},
        4,  # verify, settle, rows into the cache, propose
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_launches_of_a_step_do_not_grow_with_the_batch(family):
    make, manifest, settings, launches = FAMILIES[family]
    for count in (1, 4):
        device, engines = EmulatedDevice(), BatchEngines(make, count)
        model = load_model(manifest(engines), DeviceEngines(engines, device), CudaOps(device))
        group = SideBySide(model, count)
        texts = [
            group.start(
                Request(
                    prompt_ids=(0, 5, 6, 7), max_tokens=28, seed=5, sample_index=index,
                    settings=decoding(**settings), banned_ids=(0,),
                )
            )
            for index in range(count)
        ]  # fmt: skip
        costs = []
        while any(text.waits for text in texts):
            before = device.counts["launches"]
            group.step()
            costs.append(device.counts["launches"] - before)
        assert len({text.result.token_ids for text in texts}) == count
        assert np.median(costs) == launches


def test_a_text_left_early_costs_the_others_nothing_and_asks_for_no_more_runs():
    settings = decoding(rule="low_confidence", temperature=1.0)
    asked = requests(settings)[2:]
    engines = BatchEngines(lambda: TableEngines(never_ending, SHAPES, V), 2)
    group = SideBySide(load_model(make_manifest(engines), engines), 2)
    left, read = (group.start(request) for request in asked)
    next(iter(left))
    list(read)
    own = TableEngines(never_ending, SHAPES, V)
    alone = generate(load_model(make_manifest(own), own), asked[1])
    assert read.result.token_ids == alone.token_ids
    assert left.result.finish_reason == "interrupted"
    assert left.result.nfe < read.result.nfe


def test_a_batch_is_on_offer_where_every_shape_of_one_text_is():
    own = TableEngines(never_ending, SHAPES, V).specs
    assert batches(own) == ()
    assert batches((*own, *(for_batch(spec, 4) for spec in own))) == (4,)
    assert batches((*own, *(for_batch(spec, 4) for spec in own[1:]))) == ()
