"""A tiny traced model, made once per session, since tracing takes seconds."""

import pytest
import torch
from dlm_edge.export.onnx_graph.trace import trace
from dlm_edge.train.families import FAMILIES
from tiny_checkpoint import BLOCK, CONTEXT, SHAPE


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


@pytest.fixture
def traced(traced_model, tiny_graph):
    """(model, roles of its inputs); the model is the test's own."""
    return traced_model.clone(), {tensor.name: tensor.role for tensor in tiny_graph.inputs}
