"""The server over HTTP: texts, streams, canvases, errors, and requests that end early."""

import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
from dlm_edge.runtime.bundle.bundle import default_bundle_path
from dlm_edge.runtime.chat import Chat
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.runtime.serve import server as server_module
from dlm_edge.runtime.serve.http import MAX_BODY, Access
from served import served
from waiting import wait

STORY = "The cat sat, the café shut. "
LONG = {"prompt": "", "max_tokens": 30_000}
"""Goes on for a minute, in a sliding window."""


@pytest.fixture(scope="module")
def stories():
    with served(default_bundle_path()) as found:
        yield found


@pytest.fixture(scope="module")
def pipeline():
    with Pipeline.load(threads=1) as found:
        yield found


def counter(server, line):
    _, _, text = server.ask("/metrics")
    found = [row for row in text.decode().splitlines() if row.startswith(line + " ")]
    return float(found[0].split()[1]) if found else 0.0


def test_a_text_is_the_one_that_the_pipeline_writes(stories, pipeline):
    found = stories.complete(prompt="The dog", seed=3, max_tokens=40)
    (choice,) = found["choices"]
    expected = pipeline("The dog", seed=3, max_tokens=40)
    assert choice["text"] == expected.text
    assert choice["decoding"]["nfe"] == expected.nfe
    assert choice["decoding"]["settings"] == dict(expected.settings)
    assert found["usage"]["completion_tokens"] == len(expected.token_ids)


def test_a_stream_adds_up_to_the_text(stories):
    body = {"prompt": "The dog", "seed": 3, "max_tokens": 40}
    whole = stories.complete(**body)["choices"][0]
    *events, done = stories.events(**body)
    assert done == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert len(choices) > 2
    assert [c["finish_reason"] for c in choices][-2:] == [None, whole["finish_reason"]]


def test_the_usage_of_a_stream_is_its_last_chunk_if_it_is_asked_for(server):
    *_, last, _ = server.events(
        prompt="x", max_tokens=9, stream_options={"include_usage": True}, seed=0
    )
    assert json.loads(last)["choices"] == []
    assert json.loads(last)["usage"]["completion_tokens"] == 9


def test_samples_of_a_prompt_are_those_of_the_pipeline(stories, pipeline):
    found = stories.complete(prompt="The dog", seed=5, max_tokens=12, n=3)
    expected = [pipeline("The dog", seed=5, max_tokens=12, sample_index=i).text for i in range(3)]
    assert [choice["text"] for choice in found["choices"]] == expected
    assert found["usage"]["prompt_tokens"] == 3
    events = stories.events(prompt="The dog", seed=5, max_tokens=12, n=3)
    texts = ["", "", ""]
    for event in events[:-1]:
        for choice in json.loads(event)["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == expected


def test_several_prompts_have_choices_in_their_order_and_may_be_echoed(server):
    found = server.complete(prompt=["The ", "The cat"], max_tokens=6, echo=True, seed=1)
    assert [choice["text"] for choice in found["choices"]] == ["The cat sa", "The cat sat, "]


def test_a_text_without_a_seed_names_the_one_it_had(stories):
    body = {"prompt": "The dog", "max_tokens": 16}
    first, other = (stories.complete(**body)["choices"][0] for _ in range(2))
    assert first["decoding"]["seed"] != other["decoding"]["seed"]
    again = stories.complete(**body, seed=first["decoding"]["seed"])["choices"][0]
    assert again["text"] == first["text"]


def test_options_of_rules_go_by_their_own_names_and_choose_the_rule(stories, pipeline):
    found = stories.complete(prompt="The dog", seed=1, max_tokens=32, threshold=0.5, top_p=1)
    expected = pipeline("The dog", seed=1, max_tokens=32, rule="threshold", threshold=0.5)
    assert found["choices"][0]["text"] == expected.text
    assert found["choices"][0]["decoding"]["settings"]["rule"] == "threshold"


def test_a_stop_string_ends_the_text(server):
    choice = server.complete(prompt="The ", max_tokens=30, stop=["sat", "no"])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("cat ", "stop")
    assert choice["decoding"]["ended_by"] == "stop"


def test_a_suffix_gives_the_gap_alone_and_a_template_the_whole(server):
    body = {"prompt": "The ", "suffix": "the café", "gap_tokens": 10}
    assert server.complete(**body)["choices"][0]["text"] == "cat sat, "
    whole = server.complete(template="The ___the ___", gap_tokens=[10, 6])["choices"][0]
    assert whole["text"] == "The cat sat, the café"
    *events, _ = server.events(**body)
    texts = [json.loads(event)["choices"][0]["text"] for event in events]
    assert "".join(texts) == "cat sat, "


def test_underscores_before_a_suffix_are_text(server):
    found = server.complete(prompt="a\\___", suffix="___", max_tokens=4, echo=True)
    assert found["choices"][0]["text"].startswith("a\\___")


def apply(canvas, seen):
    """Replaces whole pieces, which no later canvas cuts."""
    kept, at = [], 0
    for piece in seen:
        if at < canvas["position"]:
            kept.append(piece)
            at += len(piece["ids"])
    assert at == canvas["position"]
    return kept + canvas["pieces"]


def test_canvases_rebuild_every_frame_that_the_pipeline_shows(stories, pipeline):
    *events, _ = stories.events(prompt="The dog", seed=2, max_tokens=40, provisional=True)
    seen, frames, text = [], [], ""
    for event in events:
        (choice,) = json.loads(event)["choices"]
        text += choice["text"]
        if "canvas" in choice:
            seen = apply(choice["canvas"], seen)
            whole = [token for piece in seen for token in piece["ids"]]
            shown = "".join(piece["text"] for piece in seen)
            frames.append((choice["canvas"]["nfe"], (tuple(whole), shown)))
    expected = list(pipeline.frames("The dog", seed=2, max_tokens=40))
    assert {piece["state"] for piece in seen} == {"given", "committed"}
    assert dict(frames) == {frame.nfe: (frame.token_ids, frame.text) for frame in expected}
    assert text == pipeline("The dog", seed=2, max_tokens=40).text


def test_canvases_of_a_template_end_with_its_gaps_filled(server):
    *events, _ = server.events(template="The ___the", gap_tokens=10, provisional=True)
    seen = []
    for event in events:
        (choice,) = json.loads(event)["choices"]
        if "canvas" in choice:
            seen = apply(choice["canvas"], seen)
    assert {piece["state"] for piece in seen} == {"given", "committed"}
    assert "".join(piece["text"] for piece in seen) == "The cat sat, the"


def test_a_conversation_is_answered_as_the_chat_answers_it(server, chat_bundle):
    messages = [{"role": "user", "content": "hello <|endoftext|>"}]
    body = {"model": "talker", "messages": messages, "max_tokens": 8}
    status, _, found = server.ask("/v1/chat/completions", body)
    assert status == 200
    answer = found["choices"][0]["message"]
    with Pipeline.load(chat_bundle, threads=1) as pipeline:
        talk = Chat(pipeline)
        assert answer["content"] == talk.say("hello <|endoftext|>", max_tokens=8).result().text
        messages += [answer, {"role": "user", "content": [{"type": "text", "text": "so"}]}]
        expected = talk.say("so", max_tokens=8).result().text
    _, _, found = server.ask("/v1/chat/completions", body)
    assert found["choices"][0]["message"]["content"] == expected
    *events, _ = server.events("/v1/chat/completions", **body)
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == expected


def test_models_are_listed_and_described_from_their_rules(server):
    _, _, found = server.ask("/v1/models")
    assert [model["id"] for model in found["data"]] == ["tiny", "talker"]
    _, _, tiny = server.ask("/v1/models/tiny")
    assert (tiny["chat"], tiny["infill"], tiny["card"]) == (False, True, "# tiny\n")
    rules = {rule["name"]: rule for rule in tiny["rules"]}
    options = {option["name"]: option for option in rules["threshold"]["options"]}
    assert options["threshold"]["default"] == 0.9
    assert options["threshold"]["slider"] == [0.0, 1.0]
    assert options["block_size"]["choices"] == [8, 64]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "gone"}, 404, "no model 'gone' here, only tiny, talker"),
        ({"model": 7}, 404, "no model '7' here, only tiny, talker"),
        ({"prompt": 7}, 400, "prompt must be a string or an array"),
        ({"prompt": [1, 2]}, 400, "prompt must be a string or an array of strings (no token ids)"),
        ({"prompt": ["x"] * 17}, 400, "prompt must be at most 16 texts, found 17"),
        ({"n": 17}, 400, "n must be from 1 to 16, found 17"),
        ({"prompt": ["x"] * 9, "n": 2}, 400, "n times prompts must be at most 16"),
        ({"n": True}, 400, "n must be a whole number"),
        ({"max_tokens": 0}, 400, "max_tokens must be from 1 to 32768, found 0"),
        ({"max_tokens": 10**30}, 400, "max_tokens must be from 1 to 32768"),
        ({"seed": -1}, 400, "seed must be a whole number from 0 to 2^64 - 1, not -1"),
        ({"seed": "x"}, 400, "seed must be a whole number"),
        ({"temperature": -1}, 400, "temperature must be 0, or at least 0.01 and at most 100"),
        ({"temperature": "hot"}, 400, "temperature must be"),
        ({"rule": "thresold"}, 400, "did you mean threshold?"),
        ({"temprature": 1}, 400, "temprature is unknown here; options of this model's rules"),
        ({"logprobs": 2}, 400, "logprobs is not supported: a diffusion model commits"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty is not supported: use repetition"),
        ({"prompt": "x" * 64}, 400, "the prompt has 65 tokens"),
        ({"prompt": "\ud800"}, 400, "half a character"),
        ({"stop": ["a", ""]}, 400, "a stop string must not be empty"),
        ({"stop": ["a"] * 17}, 400, "stop must be at most 16 texts"),
        ({"stop": "a" * 257}, 400, "stop must be at most 256 characters long"),
        ({"prompt": "a" * 140_000}, 400, "at most 131072 characters, found 140000"),
        ({"prompt": ["a" * 9000] * 16}, 400, "prompt must have at most 131072 characters"),
        ({"suffix": "a" * 140_000}, 400, "prompt must have at most 131072 characters"),
        ({"gap_tokens": 3}, 400, "gap_tokens has no meaning without suffix or template"),
        ({"prompt": None, "template": "no gap"}, 400, "the text to infill has no gap"),
        (
            {"prompt": "a", "suffix": "b", "stop": "x"},
            400,
            "stop has no meaning where gaps are filled",
        ),
        ({"template": "a ___", "prompt": "x"}, 400, "template is the whole text"),
        ({"template": "a ___", "gap_tokens": ["x"]}, 400, "gap_tokens must be whole numbers"),
        ({"provisional": "yes"}, 400, "provisional must be true or false"),
    ],
)
def test_a_bad_body_is_refused_in_one_line(server, body, status, message):
    for stream in ({}, {"stream": True}):
        found, _, answer = server.ask("/v1/completions", {"prompt": "x", **body, **stream})
        assert found == status
        assert message in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]
        assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must be an array with at least one message"),
        (["x"], "messages must hold objects with role and content"),
        ([{"role": "user"}], "messages content must be a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "or an array of text parts"),
        ([{"role": "assistant", "content": "x"}], "the last message must have the role user"),
        ([{"role": "tool", "content": "x"}, {"role": "user", "content": "x"}], "has the role"),
        ([{"role": "user", "content": "x" * 99}], "the prompt has"),
        ([{"role": "user", "content": "x" * 140_000}], "messages must have at most 131072"),
    ],
)
def test_a_bad_conversation_is_refused_in_one_line(server, messages, message):
    body = {"model": "talker", "messages": messages}
    status, _, answer = server.ask("/v1/chat/completions", body)
    assert status == 400
    assert message in answer["error"]["message"]


def test_a_conversation_with_a_model_that_has_no_template_is_refused(server):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    status, _, answer = server.ask("/v1/chat/completions", body)
    assert status == 400
    assert "no chat template" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"[1]", "the body must be a JSON object"),
        (b'{"prompt": "\xff"}', "the body is not UTF-8 at byte 12"),
        (b"[" * 100_000, "the body is not JSON: nested too deep"),
    ],
)
def test_a_body_that_is_no_object_is_refused(server, raw, message):
    status, _, answer = server.ask("/v1/completions", raw=raw)
    assert status == 400
    assert message in answer["error"]["message"]


def test_a_body_of_another_type_or_size_is_refused(server):
    status, _, _ = server.ask("/v1/completions", raw=b"{}", content_type="text/plain")
    assert status == 415
    status, _, answer = server.ask("/v1/completions", raw=b" " * (MAX_BODY + 1))
    assert (status, answer["error"]["type"]) == (413, "invalid_request_error")


def test_other_addresses_and_methods_are_refused(server):
    assert server.ask("/v1/nothing")[0] == 404
    assert server.ask("/v1/models/../../etc/passwd")[0] == 404
    status, headers, _ = server.ask("/v1/completions")
    assert (status, headers["allow"]) == (405, "POST")


def test_a_page_under_another_name_or_of_another_origin_may_not_ask(server):
    assert server.ask("/health", host="evil.example:80")[0] == 403
    assert server.ask("/health", host="")[0] == 403
    assert server.ask("/health", origin="http://evil.example")[0] == 403
    assert server.ask("/health", origin="null")[0] == 403
    assert server.ask("/health", host=f"localhost:{server.port}")[0] == 200
    assert server.ask("/health", host="[::1]")[0] == 200
    assert server.ask("/health", origin=server.url)[0] == 200
    _, headers, _ = server.ask("/health", method="OPTIONS", origin=server.url)
    assert headers["access-control-allow-origin"] is None


def test_keys_hosts_and_origins_that_are_named_may_ask(tiny_bundle):
    access = Access(keys=("one", "two"), hosts=("board.lan",), origins=("http://app.lan",))
    with served(tiny_bundle, access=access) as server:
        assert server.ask("/v1/models")[0] == 401
        assert server.ask("/v1/models", authorization="Bearer three")[0] == 401
        assert server.ask("/v1/models", authorization="Bearer \u00e9")[0] == 401
        assert server.ask("/metrics")[0] == 401
        assert server.ask("/v1/models", authorization="Bearer two")[0] == 200
        assert server.ask("/")[0] == server.ask("/health")[0] == 200
        assert server.ask("/health", host="board.lan:8080")[0] == 200
        _, headers, _ = server.ask("/health", method="OPTIONS", origin="http://app.lan")
        assert headers["access-control-allow-origin"] == "http://app.lan"
        assert "authorization" in headers["access-control-allow-headers"]


def test_the_page_may_load_nothing_from_elsewhere(server):
    status, headers, page = server.ask("/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    for mark in (b'src="http', b"src='http", b'href="http', b"@import", b"url(http"):
        assert mark not in page


@contextmanager
def asking(server, body):
    """A connection over which a request was sent and nothing was read."""
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        yield connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_text(server, stream):
    before = counter(server, 'dlm_texts_total{model="tiny",reason="interrupted"}')
    with asking(server, {**LONG, "stream": stream}) as connection:
        if stream:
            connection.recv(64)
        else:
            wait(lambda: server.ask("/health")[2]["running"])
    wait(lambda: not server.ask("/health")[2]["running"])
    assert server.complete(prompt="The ", max_tokens=7)["choices"][0]["text"] == "cat sat"
    assert counter(server, 'dlm_texts_total{model="tiny",reason="interrupted"}') == before


def test_a_request_beyond_its_deadline_ends_with_an_error(tiny_bundle):
    with served(tiny_bundle, deadline=0.3) as server:
        status, _, answer = server.ask("/v1/completions", LONG)
        assert (status, answer["error"]["type"]) == (504, "server_error")
        last = json.loads(server.events(**LONG)[-1])
        assert "not finished within 0.3 s" in last["error"]["message"]
        wait(lambda: not server.ask("/health")[2]["running"])
        assert server.complete(prompt="The ", max_tokens=7)["choices"][0]["text"] == "cat sat"


def test_a_full_queue_is_said_and_when_to_try_again(tiny_bundle):
    with served(tiny_bundle, max_waiting=2) as server:
        status, headers, answer = server.ask("/v1/completions", {**LONG, "n": 3})
        assert (status, headers["retry-after"]) == (503, "2")
        assert "the queue takes no 3 more texts" in answer["error"]["message"]


def test_texts_of_clients_take_turns_with_those_of_one_that_asks_for_many(server):
    """By key: it is a part of who a client is."""
    many = {"prompt": "x", "max_tokens": 2000, "n": 16, "temperature": 1}
    with asking(server, many):
        wait(lambda: server.ask("/health")[2]["waiting"])
        server.ask("/v1/completions", {"prompt": "x", "max_tokens": 2}, authorization="Bearer b")
        assert server.ask("/health")[2]["waiting"] >= 10


def test_a_slow_head_is_cut_off(tiny_bundle, monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
    with (
        served(tiny_bundle) as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.settimeout(30)
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.recv(100) == b""


def test_a_slow_body_is_answered_and_cut_off(tiny_bundle, monkeypatch):
    monkeypatch.setattr("dlm_edge.runtime.serve.http.BODY_SECONDS", 0.2)
    with (
        served(tiny_bundle) as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
        connection.sendall(head + b"Content-Type: application/json\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_metrics_count_what_was_written(tiny_bundle):
    with served(tiny_bundle) as server:
        server.complete(prompt="The ", max_tokens=10, n=2)
        assert counter(server, 'dlm_texts_total{model="tiny",reason="length"}') == 2
        assert counter(server, 'dlm_tokens_total{model="tiny"}') == 20
        assert counter(server, 'dlm_first_text_seconds_count{model="tiny"}') == 1


def test_an_engine_that_fails_is_a_line_in_the_log_and_the_next_text_goes_on(
    tiny_bundle, monkeypatch
):
    with served(tiny_bundle) as server:
        from dlm_edge.runtime.generate import Generation

        def fail(self):
            raise ValueError("secret detail")

        with monkeypatch.context() as patched:
            patched.setattr(Generation, "step", fail)
            status, _, answer = server.ask("/v1/completions", {"prompt": "x"})
        assert status == 500
        assert "secret" not in answer["error"]["message"]
        assert "secret detail" in server.notes[-1]
        assert server.complete(prompt="The ", max_tokens=7)["choices"][0]["text"] == "cat sat"


def test_curl_streams(server):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    body = json.dumps({"prompt": "The ", "max_tokens": 7, "stream": True})
    command = [curl, "-sN", server.url + "/v1/completions", "-d", body]
    command += ["-H", "Content-Type: application/json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.endswith("data: [DONE]\n\n")


def test_answers_are_quick_while_a_long_text_is_written(server):
    """No measurement: the loop answers at all before the text, which takes a minute, ends."""
    with asking(server, LONG):
        wait(lambda: server.ask("/health")[2]["running"])
        begin = time.monotonic()
        assert server.ask("/v1/models")[0] == 200
        assert time.monotonic() - begin < 20
        assert server.ask("/health")[2]["running"]
