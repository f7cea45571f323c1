"""A public causal model goes from its file to a bundle in one command."""

import json

import pytest
import torch
from click.testing import CliRunner
from dlm_edge.export.cli import main
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.train.pretrained import Pipeline as AnyPipeline
from gguf_files import random_model, tokenizer_json, write_gguf

pytest.importorskip("transformers")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STOP = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random Llama as a GGUF file, its bundle and transformers' model."""
    folder = tmp_path_factory.mktemp("public")
    # As many rows as ids: a row without one is never drawn here, but it is by transformers.
    model = random_model("llama", vocab_size=len(tokenizer_json("smollm")["model"]["vocab"]))
    path = folder / "small.gguf"
    write_gguf(path, model, "llama", "smollm", tokenizer__chat_template=CHATML)
    words = [str(path), "--block", "8", "--context", "64", "-o", str(folder / "small.dlm")]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return path, folder / "small.dlm", model


def test_a_bundle_of_a_gguf_file_writes_what_transformers_does(made):
    _, bundle, model = made
    with Pipeline.load(bundle) as pipeline:
        ids = pipeline.tokenizer.encode("The king's daughter")
        assert pipeline.manifest.framing.prompt(ids) == tuple(ids)
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=STOP
        )[0].tolist()
        expected = [token for token in whole[len(ids) :] if token != STOP]
        found = pipeline.generate("The king's daughter", max_tokens=12, temperature=0.0).result()
        assert list(found.token_ids) == expected


def test_the_card_and_the_manifest_name_the_file_without_its_folder(made):
    path, bundle, _ = made
    with Pipeline.load(bundle) as pipeline:
        training = pipeline.manifest.provenance["training"]
        assert training == {"settings": {"init": path.name}, "converted": True}
        card = pipeline.bundle.member("card.md").read_text("utf-8")
        assert f"| made from | {path.name} |" in card
        assert str(path.parent) not in card
        chat = json.loads(pipeline.bundle.member("chat.json").read_bytes())
        assert chat["stop"] == ["<|im_end|>"]


def test_a_gguf_file_is_opened_without_export_too(made):
    path, bundle, _ = made
    with AnyPipeline.from_pretrained(path) as direct, Pipeline.load(bundle) as exported:
        texts = [
            pipeline.generate("She was", max_tokens=8, temperature=0.0).result().token_ids
            for pipeline in (direct, exported)
        ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("missing.gguf", None, "no such file; check the path"),
        ("cut.gguf", 0.5, "not all of one"),
        ("empty.gguf", 0.0, "not a GGUF file that can be read"),
    ],
)
def test_a_file_that_cannot_be_exported_is_one_line(made, tmp_path, name, cut, message):
    path = tmp_path / name
    if cut is not None:
        data = made[0].read_bytes()
        path.write_bytes(data[: int(len(data) * cut)])
    result = CliRunner().invoke(main, [str(path), "-o", str(tmp_path / "x.dlm")])
    assert result.exit_code == 1
    assert message in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.dlm").exists()
