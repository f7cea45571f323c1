import json

import pytest
from dlm_edge.runtime.errors import BundleError, ConfigError
from dlm_edge.runtime.pipeline import Pipeline
from manifests import denoise_spec

STORY = "The cat sat, the café shut. "


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    with Pipeline.load(tiny_bundle, threads=1) as pipeline:
        yield pipeline


def written(start, num_tokens):
    """What the tiny model writes from byte `start` of its story on."""
    data = STORY.encode() * 10
    return data[start : start + num_tokens].decode("utf-8", "replace")


def test_spans_of_a_generation_join_to_its_text(pipeline):
    generation = pipeline.generate("The ", max_tokens=30)
    texts = [span.text for span in generation]
    assert len([text for text in texts if text]) > 1
    assert "".join(texts) == generation.result().text == written(4, 30)


def test_a_result_tells_what_it_took(pipeline):
    result = pipeline.generate("The ", max_tokens=20, seed=7, sample_index=2).result()
    assert pipeline.tokenizer.decode(result.token_ids) == result.text
    assert len(result.token_ids) == 20
    assert result.nfe > 3
    assert result.tokens_per_nfe == 20 / result.nfe
    stages = {name: value for name, value in result.seconds.items() if name != "total"}
    assert sum(stages.values()) == pytest.approx(result.seconds["total"])
    busy = result.seconds["total"] - result.seconds["prepare"]
    assert result.tokens_per_s == pytest.approx(20 / busy if busy else 0)
    assert (result.engine, result.precision) == ("onnxruntime-cpu", "fp32")
    assert (result.rule, result.seed, result.sample_index) == ("threshold", 7, 2)
    assert result.settings["threshold"] == 0.9
    assert (result.finish_reason, result.approximate, result.gaps) == ("length", False, None)


def test_no_character_is_shown_in_halves(pipeline):
    accent = STORY.index("é")
    for max_tokens in (accent, accent + 1, accent + 2):
        generation = pipeline.generate(max_tokens=max_tokens, block_size=8)
        texts = [span.text for span in generation]
        assert "\ufffd" not in "".join(texts[:-1])
        assert "".join(texts) == generation.result().text == written(0, max_tokens)


def test_an_empty_prompt_is_unconditional(pipeline):
    assert pipeline.generate(max_tokens=9).result().text == "The cat s"


def test_by_default_a_text_fills_the_positions_without_a_sliding_window(pipeline):
    result = pipeline.generate("The cat").result()
    assert len(result.token_ids) == 64 - 1 - 7
    assert not result.approximate


def test_a_text_beyond_the_positions_is_marked_approximate(pipeline):
    assert pipeline.generate("The cat", max_tokens=80).result().approximate
    assert pipeline.generate("The cat " * 20, slide=True).result().approximate


def test_a_prompt_beyond_the_positions_is_refused_unless_it_may_slide(pipeline):
    with pytest.raises(ConfigError, match="shorten it"):
        pipeline.generate("The cat " * 20)


def test_a_prompt_is_held_to_the_positions_of_the_block_size_that_decodes_it(make_bundle):
    # Blocks of 8 see 24 positions here, the whole canvas 64.
    specs = [denoise_spec(*shape, vocab=258, cache=(1, 1, 2, 1, 1)) for shape in ((8, 16), (64, 8))]
    path = make_bundle(graphs=tuple(specs), block_sizes=(8, 64))
    prompt = "The cat sat, the café shut. "
    with Pipeline.load(path, threads=1) as pipeline:
        with pytest.raises(ConfigError, match="this bundle sees 24 positions as it decodes here"):
            pipeline.generate(prompt, block_size=8)
        assert (
            pipeline.generate(prompt, block_size=8, slide=True, max_tokens=4).result().approximate
        )
        assert not pipeline.generate(prompt, block_size=64, max_tokens=4).result().approximate
        result = pipeline.generate("The cat", block_size=8).result()
        assert len(result.token_ids) == 24 - 1 - 7
        assert not result.approximate


def test_a_stop_string_ends_the_text_and_its_tokens(pipeline):
    generation = pipeline.generate(max_tokens=40, stop=["sat"])
    assert "".join(span.text for span in generation) == "The cat "
    result = generation.result()
    assert (result.text, result.finish_reason) == ("The cat ", "stop")
    assert len(result.token_ids) == len("The cat ")


def test_the_model_may_end_its_text(make_bundle):
    with Pipeline.load(make_bundle(end_at=10)) as pipeline:
        result = pipeline.generate(max_tokens=40).result()
    assert (result.text, result.finish_reason) == (STORY[:10], "end")
    assert len(result.token_ids) == 10


def test_the_package_gives_a_pipeline_that_is_called_with_a_prompt(pipeline):
    import dlm_edge

    assert isinstance(pipeline, dlm_edge.Pipeline)
    wanted = pipeline.generate("The ", max_tokens=6).result()
    assert pipeline("The ", max_tokens=6).text == wanted.text
    first, _ = pipeline("The ", max_tokens=6, num_samples=2)
    assert first.text == wanted.text
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        dlm_edge.Pipelin  # noqa: B018


@pytest.mark.parametrize(
    ("name", "ours"),
    [("max_new_tokens", "max_tokens"), ("num_return_sequences", "num_samples"),
     ("do_sample", "temperature")],
)  # fmt: skip
def test_hugging_faces_names_are_answered_with_ours(pipeline, name, ours):
    with pytest.raises(ConfigError, match=f"^{name} is unknown here: give {ours}"):
        pipeline.generate("The ", **{name: 1})
    with pytest.raises(ConfigError, match=f"^{name} is unknown here: give {ours}"):
        pipeline.infill("The ___", **{name: 1})


def test_leaving_early_keeps_what_was_committed(pipeline):
    generation = pipeline.generate(max_tokens=40)
    for span in generation:
        if span.text:
            break
    result = generation.so_far()
    assert result.finish_reason == "interrupted"
    assert result.text
    assert STORY.startswith(result.text)
    assert generation.result().text == written(0, 40)


def test_equal_seeds_give_equal_texts_and_samples_differ(pipeline):
    def draw(**keys):
        return pipeline.generate(max_tokens=30, temperature=3.0, **keys).result().token_ids

    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)
    assert draw(seed=1) != draw(seed=1, sample_index=1)


def test_provisional_spans_come_only_when_asked_for(pipeline):
    quiet = list(pipeline.generate(max_tokens=16))
    assert all(span.committed for span in quiet)
    spans = list(pipeline.generate(max_tokens=16, provisional=True))
    shown = [span for span in spans if not span.committed]
    assert shown
    assert all(len(span.fixed) == len(span.token_ids) for span in shown)
    assert "".join(s.text for s in spans) == "".join(s.text for s in quiet)


def test_infilling_keeps_the_fixed_text_byte_for_byte(pipeline):
    result = pipeline.infill("Zzé ___, and\n___.", gap_tokens=(5, 3)).result()
    assert result.finish_reason == "filled"
    assert len(result.token_ids) == 8
    assert result.text.startswith("Zzé ")
    assert ", and\n" in result.text
    assert result.text.endswith(".")
    assert len(result.gaps) == 2


def test_a_template_beyond_every_canvas_is_refused_naming_both_sizes(pipeline):
    with pytest.raises(ConfigError, match="has 71 tokens, the largest canvas 64"):
        pipeline.infill("x" * 60 + "___", gap_tokens=10)


def test_a_bundle_without_a_whole_canvas_refuses_long_templates(make_bundle, pipeline):
    graphs = tuple(spec for spec in pipeline.manifest.graphs if spec.block == 8)
    with (
        Pipeline.load(make_bundle(graphs=graphs)) as blocks,
        pytest.raises(ConfigError, match="whole-canvas"),
    ):
        blocks.infill("The cat ___")


def test_a_family_without_a_mask_refuses_to_infill(make_bundle):
    causal = {"family": "ar", "mask_token_id": None, "decoding": {"rule": "next_token"}}
    with (
        Pipeline.load(make_bundle(**causal)) as pipeline,
        pytest.raises(ConfigError, match="cannot infill"),
    ):
        pipeline.infill("The ___")


@pytest.mark.parametrize(
    "keys",
    [
        {"max_tokens": 0},
        {"stop": [""]},
        {"rule": "best"},
        {"threshold": 2.0},
        {"steps": 4},
        {"top_p": 0.9},
        {"block_size": 5},
        {"colour": 1},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(pipeline, keys):
    with pytest.raises(ConfigError):
        pipeline.generate(**keys)


def test_a_vocabulary_larger_than_the_tokenizer_generates_known_tokens_only(make_bundle, pipeline):
    lacking = json.loads(pipeline.bundle.member("tokenizer.json").read_text("utf-8"))
    letter = pipeline.tokenizer.encode("c")[0]
    lacking["model"]["vocab"] = {
        token: number for token, number in lacking["model"]["vocab"].items() if number != letter
    }
    with Pipeline.load(make_bundle(tokenizer=json.dumps(lacking)), threads=1) as loaded:
        for generation in (loaded.generate("The ", max_tokens=20), loaded.infill("The ___")):
            result = generation.result()
            assert letter not in result.token_ids
            assert result.text


def test_decoding_settings_that_a_bundle_gets_wrong_are_the_bundles_fault(make_bundle):
    with (
        Pipeline.load(make_bundle(decoding={"rule": "dice"}), threads=1) as loaded,
        pytest.raises(BundleError, match="rule 'dice'"),
    ):
        loaded.generate("The ", rule="threshold")


def test_another_bundle_than_the_expected_one_is_refused(tiny_bundle):
    with pytest.raises(BundleError, match="SHA-256"):
        Pipeline.load(tiny_bundle, expect_sha256="0" * 64)


def test_an_unknown_engine_or_family_is_refused(tiny_bundle, make_bundle):
    with pytest.raises(ConfigError, match="engine"):
        Pipeline.load(tiny_bundle, engine="abacus")
    with pytest.raises(ConfigError, match="family 'astrology'"):
        Pipeline.load(make_bundle(family="astrology"))
