"""A bundle under `dlm-serve`: figures of every number of clients, and texts that stay the same."""

import json

import pytest
from click.testing import CliRunner
from dlm_edge.jetson.cli.profile import main
from dlm_edge.jetson.cli.serving import SERVE_NAME
from dlm_edge.jetson.profile import serving
from dlm_edge.runtime.bundle.bundle import default_bundle_path
from dlm_edge.runtime.errors import EngineError

pytest.importorskip("uvicorn")


def test_each_number_of_clients_gets_every_text_the_same(tmp_path, monkeypatch):
    arguments = ["--serve", "--runs", "2", "-n", "6", "--threads", "1", "--json"]
    monkeypatch.setattr(serving.measure_serving, "__kwdefaults__", _with_clients((1, 3)))
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / SERVE_NAME).read_text("utf-8"))
    assert [level["clients"] for level in found["levels"]] == [1, 3]
    assert [level["texts"] for level in found["levels"]] == [2, 6]
    assert [level["tokens"] for level in found["levels"]] == [12, 36]
    assert [level["differ"] for level in found["levels"]] == [0, 0]
    for level in found["levels"]:
        assert 0 < level["first_ms_p50"] <= level["first_ms_p99"]
        assert 0 < level["token_ms_p50"] <= level["token_ms_p99"]
    assert found["idle"]["rss_mib"] <= found["after"]["peak_rss_mib"]
    assert found["exit_status"] == 0


def _with_clients(clients):
    return {**serving.measure_serving.__kwdefaults__, "clients": clients}


def test_texts_that_differ_fail_the_command(monkeypatch):
    texts = iter("abcd")

    def stream(port, body):
        done = {"tokens": 1, "seconds": {"total": 1.0, "queue": 0.0}}
        return serving.Streamed(text=next(texts), first=1.0, seconds=2.0, decoding=done)

    monkeypatch.setattr(serving, "stream", stream)
    found = serving.measure_serving(
        default_bundle_path(), ["x"], runs=1, seed=0, max_tokens=1, settings={}, clients=(1, 2)
    )
    assert [level["differ"] for level in found["levels"]] == [0, 2]


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(EngineError, match=r"dlm-serve did not start: .*cannot open the bundle"):
        serving.Server(tmp_path / "none.dlm")


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)]
)
def test_a_quantile_is_the_least_value_that_covers_the_share(share, expected):
    assert serving.quantile([1, 2, 3, 4], share) == expected


@pytest.mark.parametrize("other", ["--sweep", "--doctor", "--no-predict"])
def test_what_measures_something_else_is_refused_beside_it(other):
    result = CliRunner().invoke(main, ["--serve", other])
    assert result.exit_code == 2
    assert "--serve" in result.stderr
