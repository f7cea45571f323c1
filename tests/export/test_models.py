"""The shelf of public models: its table, its forecasts, and a pull over the hub's protocol."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from click.testing import CliRunner
from diffusion_folders import make_diffusion
from dlm_edge.export.models import main
from dlm_edge.jetson.forecast.shapes import forecast_shape
from dlm_edge.jetson.targets import target
from dlm_edge.runtime.cli.options import split_arguments
from dlm_edge.runtime.errors import BundleError
from dlm_edge.runtime.models.shelf import QWEN2_15B, SHELF, PublicModel, named_bundle, shelf_path
from hub_server import COMMIT, hub_of

NAME = "fast-dllm-v2-1.5b"
NANO = target("orin-nano")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*words):
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize(
    ("precision", "ms", "mib"), [("fp16", 41.4, 3561 - 140), ("int8", 22.3, 2091 - 140)]
)
def test_a_causal_run_is_forecast_as_from_the_exported_graph(precision, ms, mib):
    # README's table, made from the graphs of an export at a context of 512; activations aside.
    model = PublicModel(hub="a/b", licence="", shape=QWEN2_15B, canvas=512)
    found = forecast_shape(model, NANO, precision, NANO.mode("25w"))
    assert found.run_ms == pytest.approx(ms, rel=0.05)
    parts = found.memory
    assert parts.total - parts.activations == pytest.approx(mib, rel=0.03)


def test_parameters_are_those_that_are_published():
    millions = {name: model.shape.parameters / 1e6 for name, model in SHELF.items()}
    published = {
        "a2d-0.6b-bd3lm": 596, "sdar-1.7b-b4": 2031.6, "fast-dllm-v2-1.5b": 1544,
        "mdlm-owt": 162, "nemotron-diffusion-3b": 3831.7, "sdlm-3b-d8": 3086, "smollm2-135m": 134.5,
    }  # fmt: skip
    for name, wanted in published.items():
        assert millions[name] == pytest.approx(wanted, rel=0.01), name


def test_what_does_not_fit_and_what_is_not_read_is_said():
    rows = json.loads(run("list", "--precision", "fp16", "--json").stdout)["models"]
    found = {row["name"]: (row["verdict"], row["read"]) for row in rows}
    assert found["sdar-1.7b-b4"] == ("fits", True)
    assert found["nemotron-diffusion-3b"] == ("does not fit", False)
    table = run("list")
    assert table.exit_code == 0
    assert "coda-1.7b" in table.stdout


def test_a_model_is_shown_with_its_licence_its_parts_and_all_power_modes():
    result = run("show", "coda-1.7b", "--json")
    shown = json.loads(result.stdout)
    assert shown["forbids_commerce"]
    assert {item["mode"] for item in shown["orin-nano"]} == {"15w", "25w", "maxn-super"}
    assert "weights" in run("show", "mdlm-owt").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "mdlm-owl"], "did you mean mdlm-owt?"),
        (["pull", "sdlm-3b-d4"], "cannot be read yet: its windows"),
        (["remove", "mdlm-owt"], "is not here: nothing to remove"),
        (["pull", "mdlm-owt", "--context", "64"], "canvas of 1024 positions: leave --context out"),
        (["pull", NAME, "--context", "-3"], "-3 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, message):
    result = run(*words)
    assert result.exit_code == (2 if "--context" in words else 1)
    assert message in result.stderr.strip().splitlines()[-1]


def test_a_full_disk_is_found_before_anything_is_downloaded(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1 << 20))
    result = run("pull", NAME)
    assert result.exit_code == 1
    assert "GiB for the download and the bundle" in result.stderr


def test_a_name_is_a_bundle_for_dlm_run_once_it_is_pulled(tmp_path):
    assert named_bundle("model.dlm").name == "model.dlm"
    with pytest.raises(BundleError, match=f"dlm-models pull {NAME}"):
        named_bundle(NAME)
    shelf_path(NAME).parent.mkdir(parents=True)
    shelf_path(NAME).write_bytes(b"x")
    assert named_bundle(NAME) == shelf_path(NAME)
    assert split_arguments((NAME, "Hello there")) == (shelf_path(NAME), "Hello there")
    assert run("remove", NAME).exit_code == 0
    assert not shelf_path(NAME).exists()


def command(module, *words, hub, tmp_path, offline=False):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "1" if offline else "0",
    }
    return subprocess.run(
        [sys.executable, "-m", f"dlm_edge.{module}", *words],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_pull_survives_a_broken_connection_and_then_runs_by_name_offline(tmp_path):
    pytest.importorskip("transformers")
    folder = tmp_path / "repository"
    make_diffusion(folder, "fast-dllm", mask="|<MASK>|")
    name = SHELF[NAME].hub
    with hub_of({name: folder}, cut=5000) as hub:
        result = command(
            "export.models", "pull", NAME, "--precision", "fp32", "--context", "64",
            hub=hub.url, tmp_path=tmp_path,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        weights = [item for item in hub.requests if item[:2] == ("GET", "model.safetensors")]
    assert len(weights) == 2  # the connection broke once
    assert "licence of the weights: apache-2.0" in result.stderr
    said = command(
        "runtime.cli.run", NAME, "Once", "-n", "6", "--json",
        hub="http://127.0.0.1:9", tmp_path=tmp_path, offline=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    card = command(
        "runtime.cli.run", NAME, "--info", "--json", hub="http://127.0.0.1:9", tmp_path=tmp_path
    )
    assert COMMIT in card.stdout
