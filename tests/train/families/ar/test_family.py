"""The causal objective."""

import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families import FAMILIES

FAMILY = FAMILIES["ar"]
OPTIONS = {
    "dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 9,
    "context": 8,
    "eos_token_id": 0,
}


def make():
    config = FAMILY.make_config(OPTIONS)
    torch.manual_seed(0)
    model = FAMILY.make_model(config["model"]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return config, model


def test_the_loss_is_the_chain_rule_token_by_token():
    config, model = make()
    ids = torch.randint(0, 9, (2, 8))
    expected = torch.zeros(2)
    for length in range(1, 8):
        with torch.no_grad():
            mask = torch.ones(length, length, dtype=torch.bool).tril()
            logits = model(ids[:, :length], torch.arange(length), mask)[:, -1]
        expected -= torch.log_softmax(logits, dim=-1)[torch.arange(2), ids[:, length]]
    found = FAMILY.eval_loss(model, Batch(ids=ids), config, seed=0)["ar"]
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)
    output = FAMILY.loss(model, Batch(ids=ids), torch.Generator(), config)
    assert output.num_tokens == 14
    assert output.loss.item() == pytest.approx(expected.sum().item() / 14, rel=1e-4)


def test_later_tokens_do_not_leak():
    config, model = make()
    ids = torch.randint(0, 9, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 9
    with torch.no_grad():
        one, other = (FAMILY._nats(model, x, config)[0] for x in (ids, changed))  # pyright: ignore
    assert torch.equal(one[:4], other[:4])
    assert not torch.equal(one[5:], other[5:])


def test_its_graph_is_causal_and_shifted():
    config, model = make()
    (graph,) = FAMILY.graphs(model, config)
    assert graph.name == "denoise"
    assert [tensor.role for tensor in graph.inputs] == ["canvas", "start", "kv"]
    trunk, head = graph.parts
    assert [tensor.role for tensor in trunk.inputs][2:4] == ["kv.keys.0", "kv.values.0"]
    assert [tensor.role for tensor in trunk.outputs][:2] == ["hidden", "kv.keys.0_new"]
    assert head.name == "head"
    manifest = FAMILY.manifest(config, model, target="host", precision="fp32")
    assert manifest.logit_shift == 1
    assert manifest.mask_token_id is None


def test_it_takes_no_block_sizes():
    with pytest.raises(ConfigError, match="takes no --block-size"):
        FAMILY.make_config({**OPTIONS, "block_sizes": "4"})
