"""Tiny checkpoints, and a graph traced once per session, since tracing takes seconds."""

import pytest
import torch
from dlm_edge.calibration import quantise, recording
from dlm_edge.export import pack
from dlm_edge.export.onnx_graph.trace import trace
from dlm_edge.train.families import FAMILIES
from tiny_checkpoint import BLOCK, CONTEXT, SHAPE, make_checkpoint

BOATS = [
    f"The {word} boat sailed over the {other} sea and came home."
    for word in ("red", "blue", "old", "new")
    for other in ("calm", "wild", "grey", "wide", "cold")
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mdlm") / "checkpoint"
    make_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def causal_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ar") / "checkpoint"
    make_checkpoint(folder, "ar")
    return folder


@pytest.fixture(scope="session")
def tiny_graph():
    torch.manual_seed(0)
    family = FAMILIES["mdlm"]
    options = {"eos_token_id": 0, "mask_token_id": 1, "block_sizes": f"{BLOCK},full"}
    config = family.make_config({**SHAPE, **options, "tie_embeddings": True})
    (graph,) = family.graphs(family.make_model(config["model"]).eval(), config)
    return graph


@pytest.fixture(scope="session")
def traced_model(tiny_graph):
    return trace(tiny_graph, {"batch": 1, "rows": BLOCK, "context": CONTEXT})


@pytest.fixture(scope="module")
def few_measurements():
    """A tiny model is measured in seconds, but not by as many canvases as a real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "NUM_SAMPLES", 4)
        patch.setattr(quantise, "NUM_DECODES", 2)
        few = recording.CanvasSettings(per_stratum=1, num_decodes=1, num_windows=1)
        patch.setattr(recording, "HELD_OUT", few)
        patch.setattr(recording, "CALIBRATION", few)
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text to calibrate and measure on."""
    path = tmp_path_factory.mktemp("text") / "boats.txt"
    path.write_text("<|endoftext|>".join(BOATS), "utf-8")
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Weights that are not scaled up: an untrained model's logits are nearly flat."""
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    make_checkpoint(folder, scale=1.0, tie_embeddings=True)
    return folder


@pytest.fixture(scope="module")
def traced_once():
    return {}


@pytest.fixture
def traced_before(traced_once, monkeypatch):
    """Saves the seconds that tracing a module's one model takes where something else is tested."""

    def trace(graph, *given, once=pack.trace):
        if not traced_once:
            traced_once[graph.name] = once(graph, *given)
        return traced_once[graph.name].clone()

    monkeypatch.setattr(pack, "trace", trace)
