"""Tiny checkpoints, and a graph traced once per session, since tracing takes seconds."""

import pytest
import torch
from dlm_edge.export.trace import trace
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.families.shapes import Shape
from tiny_checkpoint import BLOCK, CONTEXT, SHAPE, make_checkpoint


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
def traced_bytes(tiny_graph):
    return trace(tiny_graph, Shape(block=BLOCK, context=CONTEXT)).SerializeToString()
