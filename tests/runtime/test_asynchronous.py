"""Texts for event loops: the thread that decodes them, whose turn it is, and who shares runs."""

import asyncio
import threading

import pytest
from batch_engines import OneOrMore
from dlm_edge.runtime.asynchronous import AsyncPipeline, BusyError, LeftError, Worker
from dlm_edge.runtime.bundle.bundle import Bundle
from dlm_edge.runtime.errors import BundleError, ConfigError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.runtime.side_by_side import BatchTimes
from dlm_edge.runtime.text.tokenizer import Tokenizer
from table_engines import TableEngines, hashed, make_manifest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

V = 70
SHAPES = [(8, 16), (8, 64), (16, 64), (64, 8)]
LETTERS = [chr(ord("0") + index) for index in range(V)]


def make_pipeline(folder, batch=1):
    """A model of 70 letters; with a batch, for so many texts at once as well."""

    def make():
        return TableEngines(hashed(V), SHAPES, V)

    engines = make() if batch == 1 else OneOrMore(make, batch)
    backend = Backend(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([LETTERS[0]])
    model = load_model(make_manifest(engines), engines)
    bundle = Bundle(path=folder / "t.dlm", sha256="", manifest=model.manifest, folder=folder)
    pipeline = Pipeline(bundle, model, Tokenizer(backend.to_str()))
    pipeline.batch_times = BatchTimes(batch=batch, together=1.0, alone=1.0)
    return pipeline


def asked(pipeline, *, temperature=1.0, **options):
    return pipeline.ask(temperature=temperature, rule="low_confidence", **options)


def alone(folder, **options):
    pipeline = make_pipeline(folder)
    return pipeline.start(asked(pipeline, **options)).result().token_ids


def run(main, **options):
    """Runs `main(worker)`, and closes the worker whatever happens."""

    async def body():
        worker = Worker(**options)
        try:
            return await asyncio.wait_for(main(worker), 300)
        finally:
            await asyncio.to_thread(worker.close)

    return asyncio.run(body())


def test_the_shipped_model_writes_for_a_loop_as_it_does_for_a_program():
    async def main():
        async with await AsyncPipeline.load(threads=1) as pipeline:
            text = "".join([s.text async for s in pipeline.generate("The dog", max_tokens=20)])
            filled = await pipeline.infill("The dog ___ home.", seed=2).result()
            return text, filled.text

    with Pipeline.load(threads=1) as pipeline:
        expected = pipeline("The dog", max_tokens=20).text
        assert asyncio.run(main()) == (
            expected,
            pipeline.infill("The dog ___ home.", seed=2).result().text,
        )


def test_a_loop_goes_on_while_a_text_is_written(tmp_path):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        (text,) = pipeline.submit([asked(pipeline.pipeline, max_tokens=40)])
        turns = 0
        while not text._result.done():
            await asyncio.sleep(0)
            turns += 1
        return turns, (await text.result()).token_ids

    turns, ids = run(main)
    assert turns > 3
    assert ids == alone(tmp_path, max_tokens=40)


def test_what_cannot_be_asked_is_refused_at_once(tmp_path):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        with pytest.raises(ConfigError, match="temperature"):
            pipeline.generate(temperature=-1)
        (text,) = pipeline.submit([asked(pipeline.pipeline, seed=-1)])  # only the family knows
        with pytest.raises(ConfigError, match="seed must be"):
            await text.began()
        with pytest.raises(ConfigError, match="seed must be"):
            _ = [span async for span in text]

    run(main)


def test_a_bundle_that_is_missing_is_refused_and_leaves_no_thread(tmp_path):
    before = threading.active_count()
    with pytest.raises(BundleError, match="cannot open the bundle"):
        asyncio.run(AsyncPipeline.load(tmp_path / "none.dlm"))
    assert threading.active_count() == before


def test_a_text_that_is_left_ends_and_the_next_begins(tmp_path):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        long, waiting, last = pipeline.submit(
            [asked(pipeline.pipeline, max_tokens=size) for size in (100_000, 9, 12)]
        )
        async for _ in long.steps():
            break
        waiting.leave()
        with pytest.raises(LeftError):
            await waiting.result()
        long.leave()
        return await long.result(), (await last.result()).token_ids

    left, ids = run(main)
    assert left.finish_reason == "interrupted"
    assert ids == alone(tmp_path, max_tokens=12)


def test_clients_take_turns(tmp_path):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        order = []

        async def read(name, text):
            await text.began()
            order.append(name)
            await text.result()

        hold = threading.Event()
        waiting = worker.call(hold.wait)
        texts = []
        for client, count in (("a", 3), ("b", 2), ("c", 1)):
            some = pipeline.submit([asked(pipeline.pipeline, max_tokens=4)] * count, client)
            texts += [read(client, text) for text in some]
        hold.set()
        await asyncio.gather(waiting, *texts)
        return order

    assert run(main) == ["a", "b", "c", "a", "b", "a"]


def test_a_queue_takes_all_texts_of_a_request_or_none(tmp_path):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        hold = threading.Event()
        waiting = worker.call(hold.wait)
        item = asked(pipeline.pipeline, max_tokens=4)
        texts = pipeline.submit([item] * 2)
        with pytest.raises(BusyError, match="takes no 2 more texts: 2 texts wait already"):
            pipeline.submit([item] * 2)
        texts += pipeline.submit([item])
        hold.set()
        await waiting
        return [(await text.result()).finish_reason for text in texts]

    assert run(main, max_waiting=3) == ["length"] * 3


@pytest.mark.parametrize("batch", [2, 3])
def test_texts_join_a_batch_as_slots_become_free_and_are_the_same_as_alone(
    tmp_path, batch, monkeypatch
):
    lengths = (8, 40, 24, 16, 32, 8, 56)

    async def main(worker):
        pipeline, most = make_pipeline(tmp_path, batch), 0
        start = pipeline.start

        def counted(item, group):
            nonlocal most
            found = start(item, group)
            most = max(most, batch - group.num_free)
            return found

        monkeypatch.setattr(pipeline, "start", counted)
        served = AsyncPipeline(pipeline, worker)
        texts = served.submit(
            [
                asked(pipeline, max_tokens=size, sample_index=index, seed=7)
                for index, size in enumerate(lengths)
            ]
        )
        results = [(await text.result()).token_ids for text in texts]
        return results, most, pipeline.engines.num_shared_runs

    found, most, runs = run(main)
    assert found == [
        alone(tmp_path, max_tokens=size, sample_index=index, seed=7)
        for index, size in enumerate(lengths)
    ]
    assert most == batch
    single = sum(len(ids) for ids in found)  # one position per run at the default steps
    assert 0 < runs < single


def test_texts_of_two_bundles_take_turns_on_one_thread(tmp_path):
    async def main(worker):
        first, other = (AsyncPipeline(make_pipeline(tmp_path, batch), worker) for batch in (1, 2))
        texts = []
        for seed in range(3):
            for pipeline in (first, other):
                texts += pipeline.submit([asked(pipeline.pipeline, max_tokens=12, seed=seed)], seed)
        return [(await text.result()).token_ids for text in texts]

    found = run(main)
    assert found[0::2] == found[1::2]
    assert found[0] == alone(tmp_path, max_tokens=12, seed=0)


def test_a_failing_run_ends_its_texts_alone(tmp_path, monkeypatch):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.pipeline.model.engines, "engine", None)
            (text,) = pipeline.submit([asked(pipeline.pipeline, max_tokens=8)])
            with pytest.raises(TypeError):
                await text.result()
        (text,) = pipeline.submit([asked(pipeline.pipeline, max_tokens=8)])
        return (await text.result()).token_ids

    assert run(main) == alone(tmp_path, max_tokens=8)


def test_a_call_that_nobody_waits_for_any_more_does_no_harm(tmp_path):
    async def main(worker):
        hold, called = threading.Event(), []
        first, second = worker.call(hold.wait), worker.call(lambda: called.append(1))
        await asyncio.sleep(0.05)
        first.cancel()
        second.cancel()
        await asyncio.sleep(0)  # a cancelled future tells the thread's in the loop's next turn
        hold.set()
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        (text,) = pipeline.submit([asked(pipeline.pipeline, max_tokens=8)])
        return (await text.result()).token_ids, called

    assert run(main) == (alone(tmp_path, max_tokens=8), [])


def test_a_pipeline_is_closed_only_when_a_text_that_was_left_has_ended(tmp_path):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        (text,) = pipeline.submit([asked(pipeline.pipeline, max_tokens=100_000)])
        await text.began()
        running = []
        pipeline.pipeline.close = lambda: running.append(worker.num_running)
        text.leave()
        await pipeline.close()
        return running

    assert run(main) == [0]


def test_a_closed_worker_ends_its_texts_and_takes_no_more(tmp_path):
    async def main(worker):
        pipeline = AsyncPipeline(make_pipeline(tmp_path), worker)
        long, waiting = pipeline.submit([asked(pipeline.pipeline, max_tokens=100_000)] * 2)
        await long.began()
        await asyncio.to_thread(worker.close)
        assert (await long.result()).finish_reason == "interrupted"
        with pytest.raises(LeftError):
            await waiting.result()
        with pytest.raises(BusyError, match="it is closing"):
            pipeline.submit([asked(pipeline.pipeline, max_tokens=8)])

    run(main)
