"""A tiny traced model, made once per session, since tracing takes seconds."""

import onnx
import pytest
import torch
from dlm_edge.export.onnx_graph.trace import trace
from dlm_edge.train.families import FAMILIES
from tiny_checkpoint import BLOCK, CONTEXT, SHAPE


@pytest.fixture(scope="session")
def traced_once():
    torch.manual_seed(0)
    family = FAMILIES["mdlm"]
    options = {"eos_token_id": 0, "mask_token_id": 1, "block_sizes": f"{BLOCK},full"}
    config = family.make_config({**SHAPE, **options, "tie_embeddings": True})
    (graph,) = family.graphs(family.make_model(config["model"]).eval(), config)
    model = trace(graph, {"batch": 1, "rows": BLOCK, "context": CONTEXT})
    return model.SerializeToString(), {tensor.name: tensor.role for tensor in graph.inputs}


@pytest.fixture
def traced(traced_once):
    """(model, roles of its inputs); the model is the test's own."""
    data, roles = traced_once
    return onnx.load_from_string(data), roles
