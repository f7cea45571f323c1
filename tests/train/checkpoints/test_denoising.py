"""Public diffusion checkpoints: what their files say, and the logits that their weights give."""

import json

import pytest
import torch
from click.testing import CliRunner
from diffusion_folders import IDS, ROWS, make_diffusion, reference_logits
from dlm_edge.runtime.errors import CheckpointError
from dlm_edge.train.checkpoints.convert import convert, open_any
from dlm_edge.train.cli import main
from dlm_edge.train.evaluate import open_model
from dlm_edge.train.families.graphs import uncached_logits
from tokenizers import Tokenizer

pytest.importorskip("transformers")
MASK, END, SEPARATOR = IDS, 258, 256


@pytest.mark.parametrize(
    ("name", "recipe", "changes", "block"),
    [
        ("Qwen3-0.6B-diffusion-bd3lm-v0.1", "a2d", {}, 32),
        ("Qwen3-0.6B-diffusion-mdlm-v0.1", "a2d", {}, "full"),
        ("distill-LLaDA2-TIDE_Cross", "a2d", {}, 32),
        ("OPDLM-0.6B", "a2d", {}, 4),
        ("SDAR-1.7B-Chat-b8", "sdar", {}, 8),
        ("SDAR-1.7B-Chat", "sdar", {}, 4),
        ("SDAR-1.7B-Chat", "sdar", {"block_size": 16}, 16),
    ],
)
def test_the_block_size_is_that_of_the_config_the_name_or_the_table(
    tmp_path, name, recipe, changes, block
):
    make_diffusion(tmp_path / name, recipe, changes=changes, tied=recipe == "a2d")
    config = open_any(tmp_path / name).config
    wanted = config["model"]["context"] if block == "full" else block
    assert (config["family"], config["block_sizes"]) == ("mdlm", [wanted])
    assert (config["eos_token_id"], config["end_ids"]) == (END, [SEPARATOR])
    assert not config["model"]["causal"]
    assert config["source"]["decoding"] == ({"sub_block": 32} if block == "full" else {})


@pytest.mark.parametrize(("recipe", "tied"), [("a2d", True), ("a2d-qwen2", True), ("sdar", False)])
@pytest.mark.parametrize("block", [0, 8])
def test_logits_are_those_of_transformers_layers_under_the_recipes_mask(
    tmp_path, recipe, tied, block
):
    theirs = make_diffusion(tmp_path / "x", recipe, tied=tied, changes={"block_size": block})
    family, model = open_model(open_any(tmp_path / "x"))
    assert family.name == "mdlm"
    ids = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    ids[19:23] = [MASK] * 4
    expected = reference_logits(theirs, ids, block)
    context, rest = (ids[:16], ids[16:]) if block else ([], ids)
    with torch.no_grad():
        found = uncached_logits(model, torch.tensor([context]).long(), torch.tensor([rest]), {})
    torch.testing.assert_close(found[0], expected[-len(rest) :], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mask", "changes", "source"),
    [
        ("<|MASK|>", {}, "tokenizer, <|MASK|>"),
        ("<|mask|>", {"mask_token_id": MASK}, "config.json, mask_token_id"),
        (None, {"mask_token_id": MASK}, "config.json, mask_token_id"),
    ],
)
def test_the_mask_is_found_by_key_or_name_and_keeps_its_trained_row(
    tmp_path, mask, changes, source
):
    theirs = make_diffusion(tmp_path / "b-bd3lm", mask=mask, changes=changes)
    checkpoint = open_any(tmp_path / "b-bd3lm")
    assert checkpoint.config["mask_token_id"] == MASK
    assert checkpoint.config["source"]["mask_from"] == source
    own = theirs.get_input_embeddings().weight[MASK]
    torch.testing.assert_close(checkpoint.weights["embed.weight"][MASK], own)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
    name = tokenizer.id_to_token(MASK)
    assert name == (mask or "<|mask|>")
    assert tokenizer.get_added_tokens_decoder()[MASK].special


@pytest.mark.parametrize(
    ("name", "mask", "changes", "message"),
    [
        ("m", "<|mask|>", {}, "neither config.json nor its name says which blocks"),
        ("m-bd3lm", None, {}, "mask has id 151669 (table of architectures), which the tokenizer"),
        ("m-bd3lm", "<|mask|>", {"mask_token_id": 300}, "mask has id 300 (config.json, mask_token"),
        ("m-bd3lm", "<|mask|>", {"mask_token_id": 70}, "which is the text 'g' in the tokenizer"),
        ("m-bd3lm", "<|mask|>", {"block_size": "32"}, "block_size of config.json is '32'"),
        ("m", "<|mask|>", {"architectures": ["LLaDAModelLM"], "auto_map": {"a": "b"}},
         "'LLaDAModelLM' is not supported; the code in its repository is not run; choose a"),
    ],
)  # fmt: skip
def test_what_is_no_such_checkpoint_is_one_line(tmp_path, name, mask, changes, message):
    make_diffusion(tmp_path / name, mask=mask, changes=changes)
    with pytest.raises(CheckpointError) as caught:
        open_any(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_that_is_said_to_be_tied_and_differs_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    make_diffusion(tmp_path / "m-bd3lm")
    file = tmp_path / "m-bd3lm" / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] += 1.0
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="json ties the two"):
        open_any(tmp_path / "m-bd3lm")


def test_a_model_that_names_no_blocks_takes_those_of_the_option(tmp_path):
    make_diffusion(tmp_path / "m")
    assert open_any(tmp_path / "m", (4, 8)).config["block_sizes"] == [8]
    whole = open_any(tmp_path / "m", ("full",)).config
    assert whole["block_sizes"] == [whole["model"]["context"]]
    assert whole["source"]["decoding"] == {"sub_block": 32}


def test_source_and_licence_stay_with_a_converted_checkpoint(tmp_path):
    make_diffusion(tmp_path / "m-b4", "sdar", tied=False, licence="cc-by-nc-4.0")
    convert(str(tmp_path / "m-b4"), str(tmp_path / "ours"), "mdlm", {}, None)
    config = json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))
    assert config["source"]["licence"] == "cc-by-nc-4.0"
    assert config["source"]["name"] == "m-b4"
    assert (config["vocab_size"], config["block_sizes"]) == (ROWS, [4])
    again = open_any(tmp_path / "ours")
    assert again.config["mask_token_id"] == MASK
    assert again.config["source"] == config["source"]


def test_training_goes_on_from_a_public_model_with_its_mask_and_blocks(tmp_path, stories):
    make_diffusion(tmp_path / "SDAR-b8", "sdar", mask="<|MASK|>", tied=False)
    result = CliRunner().invoke(
        main,
        [
            *("--family", "mdlm", "--init", str(tmp_path / "SDAR-b8"), "--data", str(stories)),
            *("--context", "16", "--batch-size", "4", "--max-steps", "1", "--eval-rows", "2"),
            *(
                "--log",
                "none",
                "--optimizer",
                "adamw",
                "--lora",
                "2",
                "--cache-dir",
                str(tmp_path / "cache"),
            ),
            *("--out", str(tmp_path / "run")),
        ],
    )
    assert result.exit_code == 0, result.output
    config = open_any(tmp_path / "run").config
    assert (config["block_sizes"], config["mask_token_id"]) == ([8], MASK)
    assert config["source"]["licence"] == "apache-2.0"
