"""A public diffusion model goes from its folder to a bundle in one command, and then decodes, chats
and stops as its authors describe."""

import json

import pytest
from click.testing import CliRunner
from diffusion_folders import IDS, ROWS, make_diffusion, reference_decode
from dlm_edge.export.cli import main
from dlm_edge.runtime.chat import Chat
from dlm_edge.runtime.cli.run import main as run
from dlm_edge.runtime.pipeline import Pipeline

pytest.importorskip("transformers")
MASK, ENDS = IDS, (258, 256)
BLOCK = 4


def export(folder, *words):
    result = CliRunner().invoke(main, [str(folder), *words, "-o", f"{folder}.dlm", "--json"])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random SDAR with blocks of 4: transformers' model, the bundle, the import's report."""
    folder = tmp_path_factory.mktemp("public") / "SDAR-1.7B-Chat-b4"
    model = make_diffusion(folder, "sdar", mask="<|MASK|>", tied=False, licence="cc-by-nc-4.0")
    report = folder.parent / "import.json"
    words = ("--context", "32,64", "--report-import", str(report), "--temperature", "0")
    result = export(folder, *words)
    return model, f"{folder}.dlm", json.loads(report.read_text("utf-8")), result.stderr


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 13])
@pytest.mark.parametrize("threshold", [0.05, 1.0])
def test_a_text_is_that_of_decoding_without_a_cache(made, length, threshold):
    model, bundle, _, _ = made
    prompt = [(37 * (i + length)) % 256 for i in range(length)]
    banned = range(IDS, ROWS)
    expected = reference_decode(model, prompt, BLOCK, 14, MASK, ENDS, banned, threshold)
    with Pipeline.load(bundle) as pipeline:
        found = pipeline.continue_ids(prompt, max_tokens=14, threshold=threshold).result()
    assert list(found.token_ids) == expected


def test_a_text_ends_at_any_of_its_ends_and_holds_no_id_without_text(made):
    _, bundle, _, _ = made
    with Pipeline.load(bundle) as pipeline:
        manifest = pipeline.manifest
        assert manifest.ends == ENDS
        assert (manifest.mask_token_id, manifest.block_sizes) == (MASK, (BLOCK,))
        prompt, seen = [10, 20, 30], set()
        for index in range(12):
            text = pipeline.continue_ids(
                prompt, max_tokens=24, temperature=2.0, sample_index=index
            ).result()
            seen.update(text.token_ids)
            assert not set(text.token_ids) & {*ENDS, *range(IDS, ROWS)}
        # Any id that is drawn can be made an end: what is before it stays, what follows goes.
        whole = pipeline.continue_ids(prompt, max_tokens=24).result().token_ids
        stop = whole[6]
        cut = pipeline.continue_ids(prompt, max_tokens=24, end_ids=(stop,)).result()
        assert cut.finish_reason == "end"
        assert list(cut.token_ids) == list(whole[: whole.index(stop)])


def test_a_chat_asks_without_thoughts_and_reuses_whole_blocks(made):
    _, bundle, _, _ = made
    with Pipeline.load(bundle) as pipeline:
        chat = Chat(pipeline)
        chat.say("Hi", max_tokens=6).result()
        asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        encode = pipeline.tokenizer.encode_pieces
        first = encode([(asked, True)])
        assert list(chat.ids[: len(first)]) == first
        answer = pipeline.tokenizer.decode(chat.ids[len(first) :])
        second = chat.say("So", max_tokens=4)
        text = second.result()
        # Earlier answers have no empty thought in front of them.
        expected = f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        expected += asked.replace("Hi", "So")
        pieces = [(expected.partition(answer)[0], True), (answer, False)]
        given = encode([*pieces, (expected.partition(answer)[2], True)])
        assert list(second.given_ids) == given
        assert second.num_cached >= len(encode([(asked.partition("<think>")[0], True)])) - BLOCK
        fresh = pipeline.continue_ids(given, end_ids=(258,), max_tokens=4).result()
        assert text.token_ids == fresh.token_ids


def test_the_card_keeps_licence_and_source_and_the_export_prints_them(made):
    _, bundle, report, stderr = made
    with Pipeline.load(bundle) as pipeline:
        card = pipeline.bundle.member("card.md").read_text("utf-8")
    assert "| licence of the weights | cc-by-nc-4.0 |" in card
    assert "| weights of | SDAR-1.7B-Chat-b4 |" in card
    assert "licence of the weights, as their card names it: cc-by-nc-4.0; it forbids" in stderr
    assert report["source"]["mask_from"] == "tokenizer, <|MASK|>"
    assert report["source"]["block_from"] == "the checkpoint's name"
    assert report["ids_without_text"] == ROWS - IDS - 1
    assert report["reading"]["nats_per_token"].keys() == {"4"}


def test_the_commands_check_and_chat(made):
    _, bundle, _, _ = made
    result = CliRunner().invoke(run, [bundle, "--check", "--json"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(run, [bundle, "--chat", "--max-tokens", "6"], input="Hi\nYes\n")
    assert result.exit_code == 0, result.output


def test_a_whole_canvas_model_takes_the_shortest_canvas(tmp_path):
    folder = tmp_path / "Qwen3-0.6B-diffusion-mdlm-v0.1"
    model = make_diffusion(folder, "a2d")
    export(folder, "--block", "16,full", "--temperature", "0")
    with Pipeline.load(f"{folder}.dlm") as pipeline:
        assert {spec.rows for spec in pipeline.model.specs} == {16, 64}
        prompt = [9, 8, 7, 6, 5]
        found = pipeline.continue_ids(prompt, max_tokens=11, threshold=0.05)
        result = found.result()
        expected = reference_decode(model, prompt, 16, 11, MASK, ENDS, range(IDS, ROWS), 0.05)
        assert list(result.token_ids) == expected
        longer = pipeline.continue_ids(prompt, max_tokens=30).result()
        assert len(longer.token_ids) == 30 or longer.finish_reason == "end"


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """A random Fast-dLLM v2 with blocks of 8, and its bundle."""
    folder = tmp_path_factory.mktemp("shifted") / "Fast_dLLM_v2_1.5B"
    model = make_diffusion(folder, "fast-dllm", mask="|<MASK>|")
    export(folder, "--context", "64", "--temperature", "0")
    return model, f"{folder}.dlm"


@pytest.mark.parametrize("length", [1, 7, 8, 16, 19])
def test_a_shifted_model_decodes_by_parts_of_a_block_as_its_authors_describe(shifted, length):
    model, bundle = shifted
    prompt = [(29 * (i + length)) % 256 for i in range(length)]
    with Pipeline.load(bundle) as pipeline:
        assert pipeline.manifest.logit_shift == 1
        assert pipeline.settings().to_json()["sub_block"] == 8
        for sub in (4, 8):
            expected = reference_decode(
                model, prompt, 8, 21, MASK, ENDS, range(IDS, ROWS), 0.05, shift=1, sub=sub
            )
            text = pipeline.continue_ids(prompt, max_tokens=21, threshold=0.05, sub_block=sub)
            assert list(text.result().token_ids) == expected


@pytest.mark.parametrize(
    ("recipe", "rule", "tied"), [("coda", "entropy", False), ("open-dcoder", "threshold", True)]
)
def test_shifted_models_of_the_whole_canvas_fill_gaps(tmp_path, recipe, rule, tied):
    make_diffusion(tmp_path / "m", recipe, tied=tied)
    if recipe == "open-dcoder":
        (tmp_path / "m" / "generation_config.json").write_text(f'{{"mask_token_id": {MASK}}}')
    export(tmp_path / "m", "--block", "16,full")
    with Pipeline.load(tmp_path / "m.dlm") as pipeline:
        assert pipeline.manifest.logit_shift == 1
        assert pipeline.settings().name == rule
        text = pipeline.infill("def f(___):", gap_tokens=5).result().text
        assert text.startswith("def f(")
        assert text.endswith("):")


def test_a_block_that_nothing_says_is_asked_for_in_one_line(tmp_path):
    make_diffusion(tmp_path / "m")
    result = CliRunner().invoke(main, [str(tmp_path / "m"), "-o", str(tmp_path / "m.dlm")])
    assert result.exit_code == 1
    assert "give them: --block 32 for example" in result.stderr.strip().splitlines()[-1]


def test_a_ddit_takes_its_tokenizer_from_elsewhere_and_decodes_and_fills(tmp_path):
    from ddit_folders import make_ddit

    make_ddit(tmp_path / "bd3lm-owt", "BD3LM", block_size=4)
    words = ("--tokenizer", str(tmp_path / "gpt2"), "--block", "4,full")
    export(tmp_path / "bd3lm-owt", *words)
    with Pipeline.load(tmp_path / "bd3lm-owt.dlm") as pipeline:
        assert pipeline.settings().name == "first_hitting"
        assert pipeline.manifest.framing.start_ids == (256,)
        texts = [
            pipeline.continue_ids([256, 70, 71], max_tokens=9, block_size=4, seed=seed).result()
            for seed in (1, 1, 2)
        ]
        assert texts[0].token_ids == texts[1].token_ids != texts[2].token_ids
        filled = pipeline.infill("ab___cd", gap_tokens=3).result().text
        assert filled.startswith("ab")
        assert filled.endswith("cd")


@pytest.mark.parametrize(
    ("precision", "target"), [("int8", "cpu"), ("fp16", "orin-nano"), ("int8", "orin-nano")]
)
def test_a_ddit_is_exported_in_each_form(tmp_path, precision, target):
    from ddit_folders import make_ddit

    make_ddit(tmp_path / "m", "BD3LM", block_size=4)
    words = ["--tokenizer", str(tmp_path / "gpt2"), "--target", target, "--precision", precision]
    uncalibrated = ["--uncalibrated"] if precision == "int8" else []
    export(tmp_path / "m", *words, *uncalibrated, "--block", "4", "--context", "32", "--force")


@pytest.mark.parametrize("name", ["sedd-small", "duo"])
def test_models_that_see_noise_write_and_fill_by_the_rules_of_their_family(tmp_path, name):
    from ddit_folders import make_ddit, make_sedd

    if name == "duo":
        make_ddit(tmp_path / name, "DUO", time_conditioning=True)
    else:
        make_sedd(tmp_path / name)
    export(tmp_path / name, "--tokenizer", str(tmp_path / "gpt2"))
    with Pipeline.load(tmp_path / f"{name}.dlm") as pipeline:
        assert (pipeline.settings().name, pipeline.settings().to_json()["steps"]) == (
            "tweedie",
            128,
        )
        text = pipeline.continue_ids([256, 70, 71], max_tokens=9, seed=1, steps=8).result()
        assert len(text.token_ids) == 9 or text.finish_reason == "end"
        assert pipeline.infill("ab___cd", gap_tokens=3, steps=8).result().text.endswith("cd")
