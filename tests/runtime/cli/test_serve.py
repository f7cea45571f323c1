"""`dlm-serve` as a process: addresses, keys, signals."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from child_programs import LOAD
from click.testing import CliRunner
from dlm_edge.runtime.cli.serve import main

pytest.importorskip("uvicorn")

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = f"""{LOAD}
from dlm_edge.runtime.cli.serve import main
main()
"""


@contextmanager
def serving(*arguments):
    """A server process, and its port once it accepts requests."""
    command = [sys.executable, "-c", PROGRAM, str(ROOT), *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    try:
        yield process, int(json.loads(line)["url"].rpartition(":")[2])
    finally:
        process.kill()
        process.communicate()


def test_the_ready_line_names_address_and_models_and_sigterm_ends_with_status_0(tiny_bundle):
    with serving(tiny_bundle) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/v1/models")
        assert json.loads(connection.getresponse().read())["data"][0]["id"] == "tiny"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_end_and_then_ends_them_with_an_error(tiny_bundle, number):
    with serving(tiny_bundle, "--grace", "0.5") as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"prompt": "", "max_tokens": 30_000, "stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: {")
        process.send_signal(number)
        *_, last, end = answer.read().decode().split("\n\n")
        assert end == ""
        assert (
            "the server is stopping" in json.loads(last.removeprefix("data: "))["error"]["message"]
        )
        assert process.wait(timeout=120) == 0


def test_a_seed_is_that_of_requests_that_give_none(tiny_bundle):
    with serving(tiny_bundle, "--seed", "7") as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for given, expected in ({}, 7), ({"seed": 8}, 8):
            body = json.dumps({"prompt": "", "max_tokens": 1, **given})
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", body, headers)
            (choice,) = json.loads(connection.getresponse().read())["choices"]
            assert choice["decoding"]["seed"] == expected


def test_a_port_in_use_is_said_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, [str(tmp_path / "none.dlm"), "--port", str(port)])
    assert result.exit_code == 2
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.dlm"], 1, "cannot open the bundle none.dlm"),
        (["--host", "no.such.host.invalid"], 2, "cannot listen at no.such.host.invalid"),
        (["--api-key", ""], 2, "--api-key must not be empty"),
        (["--api-key-file", "none"], 1, "cannot read keys from none"),
        (["--port", "99999"], 2, "--port"),
        (["--max-waiting", "0"], 2, "--max-waiting"),
        (["--deadline", "nan"], 2, "--deadline must be a number of seconds, found nan"),
        (["--grace", "inf"], 2, "--grace must be a number of seconds, found inf"),
        (["--allow-host", "board:8080"], 2, "--allow-host must be a name alone"),
        (["--cors", "example.org"], 2, "--cors must be an origin"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, code, message):
    if "--port" not in arguments:
        arguments = [*arguments, "--port", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_server_that_anyone_may_reach_without_a_key_says_so(tiny_bundle, tmp_path):
    with serving(tiny_bundle, "--host", "0.0.0.0") as (process, _):
        process.terminate()
        assert "WARNING: http://0.0.0.0" in process.communicate()[1]
    (tmp_path / "keys").write_text("one\ntwo\n")
    options = ("--host", "0.0.0.0", "--api-key-file", tmp_path / "keys")
    with serving(tiny_bundle, *options) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 401
        process.terminate()
        assert "WARNING" not in process.communicate()[1]
