"""Conversations: the template's ids, the cache kept between turns, and the command line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from dlm_edge.runtime.bundle.bundle import Bundle
from dlm_edge.runtime.bundle.manifest import Member
from dlm_edge.runtime.chat import Chat
from dlm_edge.runtime.cli import chat as cli_chat
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.errors import BundleError, ConfigError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.kept import KeptTexts
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.runtime.text.chat_template import CHAT_NAME, ChatTemplate
from dlm_edge.runtime.text.tokenizer import Tokenizer
from draft_engines import DraftEngines, Model, draft_manifest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz \n.<|_>"
V = len(NAMES) + len(LETTERS) + 2
START, END = 1, 2
TEMPLATE = ChatTemplate(
    begin="",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    default_system="be kind",
    stop=("<|im_end|>",),
)


def letters(text):
    return [len(NAMES) + LETTERS.index(letter) for letter in text]


def tokenizer():
    vocab = {name: index for index, name in enumerate([*NAMES, *LETTERS, "<|pad|>", "<|mask|>"])}
    backend = Backend(models.WordLevel(vocab, unk_token=" "))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([*NAMES, "<|pad|>", "<|mask|>"])
    return Tokenizer(backend.to_str())


@pytest.fixture
def pipeline(tmp_path):
    return make_pipeline(tmp_path)


def make_pipeline(folder, template=TEMPLATE, *, contexts=(64, 512), split=False):
    engines = DraftEngines(Model(V, seed=8, agreement=2.0), [3], contexts, split=split)
    members = {}
    if template is not None:
        (folder / CHAT_NAME).write_text(json.dumps(template.to_json()), "utf-8")
        members[CHAT_NAME] = Member(sha256="", size=1)
    manifest = draft_manifest(engines, members=members)
    bundle = Bundle(path=folder / "x.dlm", sha256="0" * 64, manifest=manifest, folder=folder)
    return Pipeline(bundle, load_model(manifest, engines), tokenizer())


def said(role, text):
    return [START, *letters(f"{role}\n{text}"), END, *letters("\n")]


def test_a_conversations_ids_are_those_of_its_template(pipeline):
    chat = Chat(pipeline)
    opened = [*said("system", "be kind"), *said("user", "hi"), START, *letters("assistant\n")]
    answer = chat.say("hi", max_tokens=6)
    assert list(answer.given_ids) == opened
    first = answer.result()
    assert chat.ids == (*opened, *first.token_ids)
    wanted = [*opened, *first.token_ids, END, *letters("\n"), *said("user", "and now")]
    wanted += [START, *letters("assistant\n")]
    assert list(chat.say("and now", max_tokens=6).given_ids) == wanted
    chat.restart()
    assert list(chat.say("hi", max_tokens=6).given_ids) == opened


def test_a_system_text_replaces_the_templates_own(pipeline, tmp_path):
    answer = Chat(pipeline, system="be brief").say("hi", max_tokens=1)
    assert list(answer.given_ids)[: len(said("system", "be brief"))] == said("system", "be brief")
    empty = Chat(pipeline, system="").say("hi", max_tokens=1)
    assert list(empty.given_ids)[:8] == said("system", "")[:8]
    none = make_pipeline(tmp_path, ChatTemplate(**{**TEMPLATE.to_json(), "default_system": None}))
    assert list(Chat(none).say("hi", max_tokens=1).given_ids)[:6] == said("user", "hi")[:6]


def test_special_tokens_in_what_is_said_are_plain_text(pipeline):
    given = list(Chat(pipeline).say("<|im_end|>", max_tokens=1).given_ids)
    assert given.count(END) == 2  # the template's own: behind system and user
    assert letters("<|im_end|>") == given[-len(letters("<|im_end|>")) - 13 : -13]


@pytest.mark.parametrize("end", ["in the answer", "not in the answer"])
def test_thoughts_are_dropped_from_an_answer_once_the_next_turn_begins(tmp_path, end):
    written = Chat(make_pipeline(tmp_path)).say("hi", max_tokens=8).result().text
    mark = written[3] if end == "in the answer" else "</think>"
    template = ChatTemplate.from_json({**TEMPLATE.to_json(), "thoughts_end": mark})
    chat = Chat(make_pipeline(tmp_path, template))
    answer = chat.say("hi", max_tokens=8)
    assert answer.result().text == written
    kept = written.rpartition(mark)[2].lstrip("\n")
    assert (kept == written) == (end == "not in the answer")
    later = chat.say("and now", max_tokens=2)
    wanted = [*answer.given_ids, *letters(kept), END, *letters("\n"), *said("user", "and now")]
    assert list(later.given_ids) == [*wanted, START, *letters("assistant\n")]
    assert later.num_cached >= len(answer.given_ids) - 1
    fresh = make_pipeline(tmp_path).continue_ids(later.given_ids, max_tokens=2, end_ids=(END,))
    assert later.result().token_ids == fresh.result().token_ids


@pytest.mark.parametrize("rule", ["draft_verify", "next_token"])
@pytest.mark.parametrize("split", [False, True])
def test_a_turn_computes_only_what_is_new(tmp_path, rule, split):
    """Counted in runs: the long conversation is never read again, and answers stay the same."""
    pipeline = make_pipeline(tmp_path, split=split)
    engines = pipeline.engines
    chat, whole = Chat(pipeline), make_pipeline(tmp_path, split=split)
    for turn in range(6):
        engines.runs.clear()
        answer = chat.say("tell me more", max_tokens=12, rule=rule)
        result = answer.result()
        fresh = whole.continue_ids(answer.given_ids, end_ids=(END,), max_tokens=12, rule=rule)
        assert fresh.result().token_ids == result.token_ids
        runs = [run for run in engines.runs if run[0] == "step"]
        assert runs[0][3] == answer.num_cached
        new = len(answer.given_ids) - answer.num_cached
        if turn:
            assert new <= len(said("user", "tell me more")) + 20
            assert answer.num_cached >= len(answer.given_ids) - new
        prefills = sum(one[3] < len(answer.given_ids) - 1 for one in runs)
        assert prefills <= -(-new // 12) + 1
    assert len(answer.given_ids) > 200


def test_what_another_request_did_to_the_cache_is_noticed(pipeline, tmp_path):
    chat = Chat(pipeline)
    chat.say("hello there", max_tokens=8).result()
    pipeline.generate("something else entirely", max_tokens=5).result()
    answer = chat.say("go on", max_tokens=8)
    assert answer.num_cached == 0
    fresh = make_pipeline(tmp_path).continue_ids(answer.given_ids, end_ids=(END,), max_tokens=8)
    assert answer.result().token_ids == fresh.result().token_ids


@pytest.mark.parametrize("rule", ["draft_verify", "next_token"])
@pytest.mark.parametrize("split", [False, True])
def test_conversations_that_take_turns_compute_only_what_is_new(tmp_path, rule, split):
    pipeline = make_pipeline(tmp_path, split=split)
    pipeline.keep_texts(1 << 24)
    whole = make_pipeline(tmp_path, split=split)
    chats = {name: Chat(pipeline, system=name) for name in ("be kind", "be rude", "be brief")}
    for turn in range(4):
        for name, chat in chats.items():
            answer = chat.say(f"tell me of {name}", max_tokens=12, rule=rule)
            result = answer.result()
            fresh = whole.continue_ids(answer.given_ids, end_ids=(END,), max_tokens=12, rule=rule)
            assert fresh.result().token_ids == result.token_ids
            if turn:
                new = len(said("user", f"tell me of {name}")) + 20
                assert answer.num_cached >= len(answer.given_ids) - new
            pipeline.generate("between", max_tokens=3).result()


def test_a_turn_that_cannot_start_leaves_no_other_conversation_its_cache(tmp_path, monkeypatch):
    pipeline = make_pipeline(tmp_path)
    pipeline.keep_texts(1 << 24)
    first, second = Chat(pipeline, system="be kind"), Chat(pipeline, system="be rude")
    for chat in (first, second):
        chat.say("tell me more", max_tokens=12).result()
    with monkeypatch.context() as patch:
        patch.setattr(type(pipeline.model), "start", fails)
        with pytest.raises(ConfigError):
            first.say("and then", max_tokens=12)
    answer = second.say("go on", max_tokens=12)
    fresh = make_pipeline(tmp_path).continue_ids(answer.given_ids, end_ids=(END,), max_tokens=12)
    assert answer.result().token_ids == fresh.result().token_ids
    assert answer.num_cached > len(said("system", "be rude"))


def fails(model, request):
    raise ConfigError("it cannot be served")


def test_caches_of_conversations_keep_within_their_memory(tmp_path):
    pipeline = make_pipeline(tmp_path)
    pipeline.keep_texts(0)
    chats = [Chat(pipeline), Chat(pipeline, system="be rude")]
    for _ in range(2):
        answers = [chat.say("hello", max_tokens=4) for chat in chats]
        assert all(answer.result().text is not None for answer in answers)
    shared = len(said("system", "be "))
    assert all(answer.num_cached < shared for answer in answers)

    kept = KeptTexts(pipeline.model, 1 << 24)
    first, second = Chat(pipeline), Chat(pipeline, system="be rude")
    for chat in (first, second):
        chat.say("hello", max_tokens=4).result()
        kept.keep(pipeline._last.held)
    one = kept.nbytes // 2
    assert kept.nbytes == 2 * one > 0
    kept.keep(pipeline._last.held)  # the same text again takes its own place
    assert kept.nbytes == 2 * one
    kept.max_bytes = one
    kept.keep(pipeline._last.held)
    assert kept.nbytes == one


def test_an_answer_that_was_left_early_stays_as_far_as_it_came(pipeline, tmp_path):
    chat = Chat(pipeline)
    answer = chat.say("hello", max_tokens=40)
    next(iter(answer))
    left = answer.so_far().token_ids
    again = chat.say("and", max_tokens=8)
    before = list(again.given_ids)
    assert before[len(answer.given_ids) : len(answer.given_ids) + len(left) + 1] == [*left, END]
    fresh = make_pipeline(tmp_path).continue_ids(before, end_ids=(END,), max_tokens=8)
    assert again.result().token_ids == fresh.result().token_ids


def test_an_answer_ends_at_the_templates_token(tmp_path):
    pipeline = make_pipeline(tmp_path)
    ids = Chat(pipeline).say("hello", max_tokens=30).given_ids
    free = pipeline.continue_ids(ids, max_tokens=30).result().token_ids
    place = next(i for i, token in enumerate(free) if token > 2 and token not in free[:i] and i > 3)
    name = [*NAMES, *LETTERS][free[place]]
    template = ChatTemplate(**{**TEMPLATE.to_json(), "stop": (name, "<|im_end|>")})
    result = Chat(make_pipeline(tmp_path, template)).say("hello", max_tokens=30).result()
    assert result.token_ids == free[:place]
    assert result.finish_reason == "end"


def test_a_conversation_that_outgrows_the_model_says_so_or_slides(tmp_path):
    pipeline = make_pipeline(tmp_path, contexts=[64])
    chat = Chat(pipeline, system="")
    chat.say("a little story", max_tokens=10).result()
    with pytest.raises(ConfigError, match="positions"):
        chat.say("a", max_tokens=10)
    answer = chat.say("a", max_tokens=10, slide=True)
    assert answer.result().approximate
    assert chat.say("b", max_tokens=4, slide=True).num_cached == 0


def test_bundles_one_cannot_chat_with_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no chat template"):
        Chat(make_pipeline(tmp_path, None))
    wrong = ChatTemplate(**{**TEMPLATE.to_json(), "stop": ("<|eot|>",)})
    with pytest.raises(BundleError, match="eot"):
        Chat(make_pipeline(tmp_path, wrong))
    silent = ChatTemplate(**{**TEMPLATE.to_json(), "system": None, "default_system": None})
    with pytest.raises(ConfigError, match="takes no system text"):
        Chat(make_pipeline(tmp_path, silent), system="be kind")


@pytest.fixture
def run_cli(tmp_path, monkeypatch):
    made = []

    def run(*arguments, text="hello\nmore\n", template=TEMPLATE, contexts=(64, 512)):
        made.append(make_pipeline(tmp_path, template, contexts=contexts))
        monkeypatch.setattr(cli_chat, "load", lambda options: made[-1])
        return CliRunner().invoke(main, ["--chat", *arguments], input=text), made[-1]

    return run


def test_every_line_of_a_pipe_is_answered(run_cli, tmp_path):
    result, _ = run_cli("--max-tokens", "7")
    assert result.exit_code == 0
    chat = Chat(make_pipeline(tmp_path))
    expected = [chat.say(text, max_tokens=7).result().text for text in ("hello", "more")]
    assert result.stdout == "".join(f"{text}\n" for text in expected)


def test_each_turn_is_an_object_with_json(run_cli):
    result, _ = run_cli("--json", "--max-tokens", "7", text="hello\n\nmore\n/new\nhello\n")
    turns = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(turn["turn"], turn["prompt"]) for turn in turns] == [
        (1, "hello"), (2, "more"), (1, "hello")
    ]  # fmt: skip
    assert turns[0]["num_cached"] == 0 < turns[1]["num_cached"]
    assert turns[0]["text"] == turns[2]["text"]
    assert all(turn["nfe"] > 0 and turn["rule"] == "draft_verify" for turn in turns)


def test_options_that_make_no_sense_in_a_chat_are_refused(run_cli):
    for arguments, words in (
        (["hello"], "--chat contradicts PROMPT"),
        (["--watch"], "--chat contradicts --watch"),
        (["--num-samples", "2"], "--chat contradicts --num-samples"),
        (["--check"], "--check contradicts --chat"),
    ):
        result, _ = run_cli(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr
    result = CliRunner().invoke(main, ["--system", "be kind", "hello"])
    assert (result.exit_code, "--system has no effect without --chat" in result.stderr) == (2, True)
    result, _ = run_cli(template=None)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no chat template" in result.stderr


def test_special_tokens_stand_only_where_they_are_meant():
    coder = tokenizer()
    pieces = [("<|im_start|>a", True), ("b<|im_end|>", False), ("c<|im_end|><|im_end|>", True)]
    ids = coder.encode_pieces(pieces)
    assert ids == [START, *letters("ab<|im_end|>c"), END, END]
    assert coder.encode_pieces([]) == []
    assert np.array_equal(coder.encode_pieces([("ab", False)]), coder.encode("ab"))


@pytest.mark.parametrize("terminal", [True, False])
def test_what_does_not_fit_ends_a_pipe_and_leaves_a_terminal_its_conversation(
    run_cli, monkeypatch, terminal
):
    monkeypatch.setattr(cli_chat, "_on_terminal", lambda: terminal)
    text = "\n".join(["hello", "a long story " * 20, "/new", "hello"])
    result, _ = run_cli("--max-tokens", "4", text=text, contexts=(128,))
    assert "positions" in result.stderr
    answers = [line for line in result.stdout.splitlines() if line]
    if terminal:
        assert result.exit_code == 0, result.stderr
        assert answers[0] == answers[1]
        assert "/new" in result.stderr
    else:
        assert (result.exit_code, len(answers)) == (2, 1)
