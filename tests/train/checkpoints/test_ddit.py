"""DDiT checkpoints: modulation folded into weights against the model as it is published."""

import math

import pytest
import torch
from ddit_folders import (
    LENGTH,
    ROWS,
    make_ddit,
    make_sedd,
    reference_logits,
    reference_scores,
)
from dlm_edge.runtime.errors import CheckpointError
from dlm_edge.runtime.noise.transition import analytic_step
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.evaluate import open_model
from dlm_edge.train.families.graphs import uncached_logits
from safetensors.torch import load_file, save_file

MASK, END = 257, 256


def opened(folder):
    return open_any(folder, (), str(folder.parent / "gpt2"))


@pytest.mark.parametrize(
    ("name", "prefix", "changes", "block"),
    [
        ("MDLM", "backbone.", {}, 0),
        ("MDLM", "", {}, 0),
        ("BD3LM", "backbone.", {"block_size": 4, "cross_attn": True, "attn_backend": "flex"}, 4),
        ("BD3LM", "backbone.", {"block_size": LENGTH}, 0),
    ],
)
def test_folded_weights_give_the_logits_of_the_modulated_model(
    tmp_path, name, prefix, changes, block
):
    tensors = make_ddit(tmp_path / "m", name, prefix=prefix, **changes)
    checkpoint = opened(tmp_path / "m")
    config = checkpoint.config
    assert config["block_sizes"] == [block or LENGTH]
    assert (config["mask_token_id"], config["eos_token_id"]) == (MASK, END)
    assert config["start_ids"] == [END]
    _, model = open_model(checkpoint)
    ids = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    ids[21:24] = [MASK] * 3
    context, rest = (ids[:20], ids[20:]) if block else ([], ids)
    with torch.no_grad():
        found = uncached_logits(model, torch.tensor([context]).long(), torch.tensor([rest]), {})
    expected = reference_logits(tensors, ids, block)[-len(rest) :]
    torch.testing.assert_close(found[0], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_conditioning": True}, "its layers see time"),
        ({"n_blocks": 1}, "tensor blocks.1.adaLN_modulation.bias is not of a DDiT"),
        ({"n_blocks": 3}, "tensor blocks.2.adaLN_modulation.weight is missing"),
        ({"hidden_dim": 64}, "is (258, 32), config.json makes it (258, 64)"),
        ({"model_length": None}, "model_length is missing"),
        ({"n_heads": 0}, "config.json describes no model"),
        ({"mask_token_id": ROWS}, "which the tokenizer does not have"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, changes, message):
    make_ddit(tmp_path / "m", **changes)
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path / "m")
    assert message in str(caught.value)


def test_a_tokenizer_is_asked_for_where_there_is_none_and_refused_where_there_is_one(tmp_path):
    make_ddit(tmp_path / "m")
    with pytest.raises(CheckpointError, match="--tokenizer openai-community/gpt2"):
        open_any(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json there"):
        open_any(tmp_path / "m", (), str(tmp_path))
    text = (tmp_path / "gpt2" / "tokenizer.json").read_text("utf-8")
    (tmp_path / "m" / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match="leave --tokenizer out"):
        opened(tmp_path / "m")
    with pytest.raises(CheckpointError, match="leave --tokenizer out"):
        open_any(tmp_path / "m.gguf", (), str(tmp_path / "gpt2"))


def test_a_pickle_is_refused_with_the_remedy(tmp_path):
    make_ddit(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refs/pr/1"):
        opened(tmp_path / "m")


def test_a_tensor_of_another_model_is_named(tmp_path):
    make_ddit(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    weights["backbone.extra"] = torch.zeros(2)
    save_file(weights, file)
    with pytest.raises(CheckpointError, match="tensor extra is not of a DDiT"):
        opened(tmp_path / "m")


def test_a_sedd_gives_the_scores_of_its_paper(tmp_path):
    tensors = make_sedd(tmp_path / "sedd-small")
    checkpoint = opened(tmp_path / "sedd-small")
    config = checkpoint.config
    assert (config["family"], config["model"]["graph"]) == ("sedd", "absorb")
    assert config["noise_schedule"]["name"] == "loglinear"
    assert (config["mask_token_id"], config["block_sizes"]) == (MASK, [LENGTH])
    _, model = open_model(checkpoint)
    ids = torch.randint(0, 256, (LENGTH,), generator=torch.Generator().manual_seed(2)).tolist()
    ids[5:9] = [MASK] * 4
    for sigma in (0.02, 0.7, 5.0):
        with torch.no_grad():
            found = model(torch.tensor([ids]), torch.tensor([sigma]))[0]
        expected = reference_scores(tensors, ids, sigma)
        torch.testing.assert_close(found, expected, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.05, 0.8, 4.0])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_an_analytic_step_of_duo_draws_from_its_papers_posterior(tmp_path, sigma, share):
    tensors = make_ddit(tmp_path / "duo", "DUO", time_conditioning=True)
    checkpoint = opened(tmp_path / "duo")
    assert checkpoint.config["model"]["graph"] == "uniform"
    _, model = open_model(checkpoint)
    ids = torch.randint(0, 256, (8,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.no_grad():
        scores = model(torch.tensor([ids]), torch.tensor([sigma]))[0, :, :-1].double().exp()
    # The paper's formula, in float64, of the network's probabilities over its states.
    states = ROWS - 1
    text = reference_logits(tensors, ids, sigma=sigma)[:, :-1].double().softmax(-1)
    at, before = math.exp(-sigma), math.exp(-sigma * share)
    own = torch.nn.functional.one_hot(torch.tensor(ids), states).double()
    step, here = at / before, (text * own).sum(-1, keepdim=True)
    wanted = states * at * text * own + (step - at) * own + (before - at) * text
    wanted = wanted + (1 - step) * (1 - before) / states
    wanted = wanted / (states * at * here + 1 - at)
    _, gain, offset, stay, slope = analytic_step("uniform", states, sigma, sigma * share)
    others = (scores * (1 - own)).sum(-1, keepdim=True)
    found = gain * (scores - offset * (1 + others)).clamp(min=0) * (1 - own)
    found = found + (stay - slope * others).clamp(min=0) * own
    found = found / found.sum(-1, keepdim=True)
    torch.testing.assert_close(wanted.sum(-1), torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=2e-4)
