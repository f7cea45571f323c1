"""The recorder on a bundle made by hand, whose graph is simple enough to know what it was given."""

from dataclasses import replace

import numpy as np
import pytest
from dlm_edge.calibration.canvases.record import (
    CanvasSettings,
    clean_canvases,
    noise_canvases,
    record_canvases,
)
from dlm_edge.calibration.canvases.recorder import Recorder, RecordingEngines, UnsoundOutputError
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import CalibrationError, ConfigError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.text.tokenizer import Tokenizer
from family_bundles import make_family_bundle
from toy_bundle import BLOCK, CACHE, KEYS, toy_tokenizer, write_toy

MASK = 1
SMALL = CanvasSettings(per_stratum=2, num_decodes=4, num_windows=3, num_samples=4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def prompts():
    texts = ["abc def ghi jkl", "mno pqa bcd efg", "hij klm nop qab"]
    tokenizer = Tokenizer(toy_tokenizer())
    return [np.array([0, *tokenizer.encode(text)], np.int32) for text in texts]


@pytest.fixture(scope="module")
def recorded(bundle, prompts):
    return record_canvases(bundle, prompts, SMALL, seed=0)


def make_request(prompts, given, new):
    ids = tuple(prompts[0][:given].tolist())
    return Request(prompt_ids=ids, max_tokens=new, seed=3, sample_index=0)


def same(one, two):
    return len(one) == len(two) and all(
        a.stratum == b.stratum
        and a.source == b.source
        and all(np.array_equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        for a, b in zip(one.items, two.items, strict=True)
    )


def test_every_decile_of_every_shape_is_covered(bundle, recorded):
    assert recorded.missing(bundle.manifest.graphs, blocks=(BLOCK,), masked=True) == []
    assert {item.source for item in recorded.items} == {"decode", "random"}


def test_masks_are_drawn_again_until_every_stratum_is_covered(bundle, prompts):
    few = replace(SMALL, num_decodes=1, num_windows=1, num_samples=2, per_stratum=1)
    made = record_canvases(bundle, prompts, few, seed=0)
    assert made.missing(bundle.manifest.graphs, blocks=(BLOCK,), masked=True) == []
    assert made.recipe["uncovered"] == []


def test_what_could_not_be_covered_is_said(bundle, prompts, monkeypatch):
    from dlm_edge.calibration.canvases import session

    monkeypatch.setattr(session, "MOST_ROUNDS", 0)
    few = replace(SMALL, num_decodes=1, num_windows=1, num_samples=2, per_stratum=1)
    made = record_canvases(bundle, prompts, few, seed=0)
    missing = made.missing(bundle.manifest.graphs, blocks=(BLOCK,), masked=True)
    assert made.recipe["uncovered"] == [list(item) for item in missing] != []


def test_equal_seeds_give_equal_sets_and_other_seeds_others(bundle, prompts, recorded):
    assert same(recorded, record_canvases(bundle, prompts, SMALL, seed=0))
    assert not same(recorded, record_canvases(bundle, prompts, SMALL, seed=1))


def test_no_stratum_holds_more_than_asked_for(recorded):
    counts = [number for sources in recorded.coverage().values() for number in sources.values()]
    assert max(counts) == SMALL.per_stratum


def test_recorded_caches_are_those_of_the_tokens_before(recorded):
    """The toy's keys are a table by token: so every used row must be one of the table's."""
    for item in recorded.items:
        start = int(item.inputs["start"][0])
        rows = item.inputs["kv"].reshape(-1, *CACHE)
        assert not rows[start:].any()
        table = KEYS.reshape(-1, *CACHE)
        for row in rows[:start]:
            assert any(np.array_equal(row, entry) for entry in table)


def test_mask_ratio_is_the_share_of_masks(recorded):
    for item in recorded.items:
        assert item.mask_ratio == float(np.mean(item.inputs["ids"] == MASK))


def test_recording_does_not_change_what_is_generated(bundle, prompts):
    engines = open_engines(bundle)
    request = Request(
        prompt_ids=tuple(prompts[0][:3].tolist()), max_tokens=9, seed=3, sample_index=0
    )
    plain = generate(load_model(bundle.manifest, engines), request)
    recorder = Recorder(MASK, per_stratum=100, seed=0)
    seen = generate(load_model(bundle.manifest, RecordingEngines(engines, recorder)), request)
    engines.close()
    assert seen.token_ids == plain.token_ids
    assert recorder.num_seen == plain.nfe


def test_committing_is_what_the_next_step_commits(bundle, prompts):
    engines = open_engines(bundle)
    recorder = Recorder(MASK, per_stratum=100, seed=0)
    request = Request(
        prompt_ids=tuple(prompts[0][:4].tolist()), max_tokens=8, seed=3, sample_index=0
    )
    made = generate(load_model(bundle.manifest, RecordingEngines(engines, recorder)), request)
    engines.close()
    text = np.array(made.token_ids)
    masked = [item for item in recorder.canvases() if item.mask_ratio > 0]
    assert masked
    by_start: dict[int, list] = {}
    for item in masked:
        by_start.setdefault(int(item.inputs["start"][0]), []).append(item)
    for start, items in by_start.items():
        items.sort(key=lambda item: -item.mask_ratio)
        committing = np.array([item.committing for item in items])
        # Each position of a block is committed exactly once, when it is still masked.
        assert (committing.sum(axis=0) == (items[0].inputs["ids"][0] == MASK)).all()
        for item, after in zip(items, [*items[1:], None], strict=True):
            ids = item.inputs["ids"][0]
            assert (ids[item.committing] == MASK).all()
            left = ids == MASK
            left &= ~item.committing
            if after is not None:
                assert np.array_equal(after.inputs["ids"][0] == MASK, left)
            else:
                assert not left.any()
            assert (ids[ids != MASK] == text[start : start + BLOCK][ids != MASK]).all()


def test_late_steps_weigh_more_than_early_ones(recorded):
    decoded = [item for item in recorded.items if item.source == "decode" and item.mask_ratio > 0]
    early = [item.weight for item in decoded if item.progress == 0.0]
    late = [item.weight for item in decoded if item.progress == 1.0]
    assert set(early) == {1.0}
    assert set(late) == {2.0}


def test_clean_canvases_hold_no_mask_and_the_texts_own_tokens(bundle, prompts):
    clean = clean_canvases(bundle, prompts, SMALL, seed=0)
    stream = " ".join(map(str, np.concatenate(prompts).tolist()))
    for item in clean.items:
        assert item.mask_ratio == 0.0
        assert " ".join(map(str, item.inputs["ids"][0].tolist())) in stream


def test_an_engine_that_gives_nan_is_stopped_at_that_canvas(bundle, prompts):
    class Broken(RecordingEngines):
        def engine(self, spec):
            engine = super().engine(spec)
            run = engine._engine.run

            def poisoned():
                run()
                engine.outputs["logits"][...] = np.nan

            engine._engine.run = poisoned
            return engine

    engines = open_engines(bundle)
    recorder = Recorder(MASK, per_stratum=100, seed=0)
    with pytest.raises(UnsoundOutputError, match="gives NaN or infinity") as caught:
        generate(
            load_model(bundle.manifest, Broken(engines, recorder)), make_request(prompts, 3, 9)
        )
    assert caught.value.canvas.spec.name == "denoise"
    assert caught.value.canvas.inputs["ids"].shape == (1, BLOCK)
    engines.close()


def test_noise_canvases_hold_random_tokens_but_never_the_mask(bundle, prompts):
    noise = noise_canvases(bundle, prompts, SMALL, seed=0)
    tokens = np.concatenate([item.inputs["ids"][0] for item in noise.items])
    assert MASK not in tokens
    assert len(set(tokens.tolist())) > 10


def test_all_three_kinds_are_about_as_many(bundle, prompts, recorded):
    for make in (clean_canvases, noise_canvases):
        number = len(make(bundle, prompts, replace(SMALL, num_windows=12), seed=0))
        assert 0.4 * len(recorded) <= number <= 2 * len(recorded)


def test_canvases_of_one_text_share_its_cache(bundle, prompts):
    engines = open_engines(bundle)
    recorder = Recorder(MASK, per_stratum=100, seed=0)
    model = load_model(bundle.manifest, RecordingEngines(engines, recorder))
    generate(model, make_request(prompts, 4, 8))
    engines.close()
    caches = [item.inputs.arrays["kv"] for item in recorder.canvases()]
    longest = max(caches, key=len)
    assert len(longest) >= 2 * BLOCK
    for cache in caches:
        np.testing.assert_array_equal(cache, longest[: len(cache)])
    owners = {id(cache.base) for cache in caches if len(cache)}
    # A text that outgrows the smaller context is copied once.
    assert len(owners) <= len({item.spec.context for item in recorder.canvases()})


def test_memory_is_bounded_by_keeping_fewer(bundle, prompts):
    engines = open_engines(bundle)

    def kept(max_bytes):
        recorder = Recorder(MASK, per_stratum=10**6, seed=0, max_bytes=max_bytes)
        for number in range(6):
            request = replace(make_request(prompts, 4, 8), sample_index=number)
            generate(load_model(bundle.manifest, RecordingEngines(engines, recorder)), request)
        found = recorder.canvases()
        owners = {}
        for array in (item for canvas in found for item in canvas.inputs.arrays.values()):
            owner = array if array.base is None else array.base
            owners[id(owner)] = owner.nbytes
        return found, sum(owners.values())

    everything, whole = kept(None)
    few, held = kept(whole // 2)
    assert held <= whole // 2 < whole
    assert 0 < len(few) < len(everything)
    assert {item.stratum for item in few} == {item.stratum for item in everything}
    with pytest.raises(CalibrationError, match="one canvas of each kind takes more than the 0 MiB"):
        kept(200)
    engines.close()


def test_progress_is_told_after_every_text(bundle, prompts):
    told = []
    record_canvases(bundle, prompts, SMALL, seed=0, progress=lambda *at: told.append(at))
    assert len(told) > 3
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {total for _, total in told} == {len(told)}


@pytest.mark.parametrize(
    ("given", "message"),
    [([], "no calibration prompts"), ([np.array([0, 3])], "fewer than a block of 4")],
)
def test_prompts_that_cannot_be_used_are_refused_in_one_line(bundle, given, message):
    with pytest.raises(CalibrationError, match=message) as caught:
        record_canvases(bundle, given, SMALL, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"per_stratum": 0}, {"num_samples": 3}, {"max_mib": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CanvasSettings(**wrong)


def test_reading_a_text_gives_the_rows_of_writing_it(tmp_path):
    """A text decoded greedily, token by token, and the same text read: equal rows in."""
    bundle = open_bundle(make_family_bundle(tmp_path, "ar"))
    engines = open_engines(bundle)
    model = load_model(bundle.manifest, engines)
    request = Request(prompt_ids=(0, 5, 9), max_tokens=6, seed=0, sample_index=0)
    ids = np.array(generate(model, request).token_ids, np.int32)

    def recorded(run):
        recorder = Recorder(None, per_stratum=100, seed=0)
        run(load_model(bundle.manifest, RecordingEngines(engines, recorder)))
        return [item for item in recorder.canvases() if item.spec.name == "denoise"]

    written = [item for item in recorded(lambda m: generate(m, request)) if item.spec.rows == 1]
    (read,) = recorded(lambda m: list(m.family.bound(m, [ids], seed=0, samples=range(1))))
    engine = engines.engine(read.spec)
    for name, array in read.inputs.items():
        engine.inputs[name][...] = array
    engine.run()
    assert written
    for item in written:
        start = int(item.inputs["start"][0])
        assert item.inputs["ids"][0, 0] == read.inputs["ids"][0, start]
        for cache, new in item.spec.new_rows:
            held = item.inputs[item.spec.tensor(cache).name][:start]
            np.testing.assert_allclose(engine.outputs[new.name][:start], held, atol=1e-5)
    engines.close()


@pytest.mark.parametrize("name", ["mdlm", "ar"])
@pytest.mark.slow
def test_recording_needs_no_more_than_a_family_and_its_specs(tmp_path, name):
    """Whole exports of untrained checkpoints: caches, whole canvases, stored-and-begun blocks."""
    from dlm_edge.export.pack import ExportSettings, export_checkpoint
    from tiny_checkpoint import CONTEXT, make_checkpoint

    make_checkpoint(tmp_path / "checkpoint", name)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "m.dlm", ExportSettings())
    bundle = open_bundle(tmp_path / "m.dlm")
    rng = np.random.default_rng(0)
    texts = [np.r_[0, rng.integers(2, 258, CONTEXT - 1)].astype(np.int32) for _ in range(3)]
    made = record_canvases(bundle, texts, SMALL, seed=0)
    shapes = {item.spec.key for item in made.items}
    assert made.recipe["uncovered"] == []
    if name == "mdlm":
        assert shapes == {spec.key for spec in bundle.manifest.graphs}
        assert {item.source for item in made.items} == {"decode", "random"}
    else:  # a known text is read in runs of the most rows
        most: dict[str, int] = {}
        for spec in bundle.manifest.graphs:
            most[spec.name] = max(spec.rows, most.get(spec.name, 0))
        assert {(name, dict(dims)["rows"]) for name, dims in shapes} == set(most.items())
        assert {item.source for item in made.items} == {"decode"}
    for item in made.items:
        assert item.inputs.keys() == {tensor.name for tensor in item.spec.inputs}
        if name == "ar":
            assert item.mask_ratio == 0.0
