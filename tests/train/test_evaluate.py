"""The bound of a checkpoint."""

import json
import math
from dataclasses import replace

import pytest
import torch
from dlm_edge.runtime.errors import CheckpointError, ConfigError
from dlm_edge.runtime.text import documents
from dlm_edge.runtime.text.tokenizer import Tokenizer as Runtime
from dlm_edge.train.checkpoints.checkpoint import load_weights, write_checkpoint
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.evaluate import evaluate_checkpoint, open_checkpoint
from dlm_edge.train.families import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LETTERS = [chr(code) for code in range(97, 123)]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(["abcdefgh" * 5, "hgfedcba" * 6, "zyx" * 9]), "utf-8")
    return path


def checkpoint(folder, family, **options):
    vocab = {"<|endoftext|>": 0, "<|mask|>": 1, **{c: i + 2 for i, c in enumerate(LETTERS)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|mask|>"])
    torch.manual_seed(0)
    config = FAMILIES[family].make_config(
        {"dim": 16, "num_layers": 1, "num_heads": 1, "vocab_size": 28, "context": 16,
         "eos_token_id": 0, **options}
    )  # fmt: skip
    model = FAMILIES[family].make_model(config["model"])
    write_checkpoint(folder, config, model.state_dict(), tokenizer.to_str())
    return folder


def test_an_untrained_causal_model_scores_about_the_uniform_distribution(tmp_path, text):
    folder = checkpoint(tmp_path / "ar", "ar")
    found = evaluate_checkpoint(folder, text)
    assert found["perplexity_low"] == found["perplexity"] == found["perplexity_high"]
    assert found["nats_per_token"] == pytest.approx(math.log(28), abs=0.1)
    assert found["num_samples"] == 1
    # 8 * 5 + 8 * 6 + 3 * 9 letters and a separator before each of the three documents.
    assert found["num_documents"] == 3
    json.dumps(found)


def causal_nats(model, ids, banned):
    """Scores ids (L,) by one causal forward, in nats over all but the first."""
    count = len(ids) - 1
    mask = torch.ones(count, count, dtype=torch.bool).tril()
    logits = model.eval()(ids[None, :-1], torch.arange(count), mask)[0].double()
    logits[:, banned] = -torch.inf
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")


def test_a_drafting_model_scores_what_its_causal_half_says(tmp_path, text):
    options = {"mask_token_id": 1, "backbone": "qwen2", "block_sizes": "2,3"}
    folder = checkpoint(tmp_path / "t", "tidar", **options)
    loaded = open_any(folder)
    weights = {name: torch.randn_like(t) * 0.5 for name, t in loaded.weights.items()}
    write_checkpoint(folder, loaded.config, weights, loaded.tokenizer_json)
    found = evaluate_checkpoint(folder, text)
    assert found["num_samples"] == 1
    model = FAMILIES["tidar"].make_model(loaded.config["model"])
    load_weights(model, open_any(folder))
    tokenizer = Tokenizer.from_str(loaded.tokenizer_json)
    ids = []
    for document in text.read_text("utf-8").split("<|endoftext|>"):
        ids += [0, *tokenizer.encode(document).ids]
    # Windows of 16 positions, each beginning with the last token of the one before; the last short.
    rows = [ids[start : start + 16] for start in range(0, len(ids) - 1, 15)]
    assert found["num_tokens"] == len(ids) - 1 >= 100
    with torch.no_grad():
        nats = [causal_nats(model, torch.tensor(row), banned=1) for row in rows]
    expected = float(sum(nats)) / found["num_tokens"]
    assert found["nats_per_token"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("block_size", [4, 16])
def test_every_trained_block_size_can_be_measured(tmp_path, text, block_size):
    folder = checkpoint(tmp_path / "m", "mdlm", mask_token_id=1, block_sizes="4,full")
    found = evaluate_checkpoint(folder, text, block_size=block_size, max_samples=8)
    assert found["block"] == block_size
    assert found["nats_per_token"] == pytest.approx(math.log(27), abs=0.1)
    assert found["perplexity_low"] < found["perplexity"] < found["perplexity_high"]


def test_equal_seeds_give_equal_figures_and_a_limit_reads_less(tmp_path, text):
    folder = checkpoint(tmp_path / "m", "mdlm", mask_token_id=1, block_sizes="4")
    first, second = (
        evaluate_checkpoint(folder, text, seed=3, limit=2, max_samples=4) for _ in range(2)
    )
    assert first["nats_per_token"] == second["nats_per_token"]
    assert first["num_documents"] == 2


def test_a_document_that_is_encoded_in_pieces_has_the_figures_of_the_whole(
    tmp_path, text, monkeypatch
):
    folder = checkpoint(tmp_path / "ar", "ar")
    whole, encode, given = evaluate_checkpoint(folder, text), Runtime.encode, []
    monkeypatch.setattr(Runtime, "encode", lambda self, t: given.append(t) or encode(self, t))
    monkeypatch.setattr(documents, "MAX_PIECE", 10)
    pieces = evaluate_checkpoint(folder, text)
    assert max(map(len, given)) <= 10
    for name in ("nats_per_token", "num_tokens", "num_documents"):
        assert pieces[name] == whole[name]


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("block_size", [4, 16])
def test_the_runtime_and_the_training_objective_measure_one_bound(tmp_path, block_size, timed):
    folder = checkpoint(
        tmp_path / "m", "mdlm", mask_token_id=1, block_sizes="4,full", time_conditioning=timed
    )
    loaded = open_any(folder)
    weights = {name: torch.randn_like(t) * 0.5 for name, t in loaded.weights.items()}
    opened = open_checkpoint(replace(loaded, weights=weights))
    family = FAMILIES["mdlm"]
    model = family.make_model(loaded.config["model"]).eval()
    model.load_state_dict(weights)
    ids = torch.randint(2, 28, (1, 16))
    bounds = opened.family.bound(
        opened, [ids[0].numpy()], seed=0, samples=range(400), block_size=block_size
    )
    decoded = next(iter(bounds)).sum(axis=1)
    name = "full" if block_size == 16 else "4"
    trained = family.eval_loss(model, Batch(ids=ids.repeat(2000, 1)), loaded.config, seed=0)[
        name
    ].numpy()
    error = math.hypot(decoded.std() / 20, trained.std() / math.sqrt(2000))
    assert decoded.mean() == pytest.approx(trained.mean(), abs=4 * error)
    assert error < 0.05 * decoded.mean()


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_the_runtime_and_the_training_objective_measure_one_score_entropy(tmp_path, graph):
    options = {"block_sizes": "8,full", "graph": graph, "noise_schedule": "geometric"}
    folder = checkpoint(tmp_path / "s", "sedd", mask_token_id=1, **options)
    loaded = open_any(folder)
    weights = {name: torch.randn_like(t) * 0.2 for name, t in loaded.weights.items()}
    opened = open_checkpoint(replace(loaded, weights=weights))
    assert [(spec.rows, spec.context) for spec in opened.specs] == [(8, 0), (16, 0)]
    family = FAMILIES["sedd"]
    model = family.make_model(loaded.config["model"]).eval()
    model.load_state_dict(weights)
    ids = torch.randint(2, 28, (1, 16))
    bounds = opened.family.bound(opened, [ids[0].numpy()], seed=0, samples=range(600))
    decoded = next(iter(bounds)).sum(axis=1)
    trained = family.eval_loss(model, Batch(ids=ids.repeat(4000, 1)), loaded.config, seed=0)[
        "full"
    ].numpy()
    error = math.hypot(decoded.std() / math.sqrt(600), trained.std() / math.sqrt(4000))
    assert decoded.mean() == pytest.approx(trained.mean(), abs=4 * error)
    assert error < 0.05 * decoded.mean()


def test_limits_below_one_and_unknown_families_are_refused(tmp_path, text):
    folder = checkpoint(tmp_path / "m", "mdlm", mask_token_id=1)
    with pytest.raises(ConfigError, match="limit"):
        evaluate_checkpoint(folder, text, limit=0)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "family": "nonesuch"}))
    with pytest.raises(CheckpointError, match="nonesuch"):
        evaluate_checkpoint(folder, text)
