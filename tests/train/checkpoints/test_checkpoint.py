from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dlm_edge.runtime.errors import CheckpointError
from dlm_edge.train.checkpoints.checkpoint import (
    load_state,
    load_weights,
    read_config,
    read_files,
    save_state,
    saved_states,
    write_checkpoint,
)
from safetensors import SafetensorError
from torch import nn

CONFIG = {
    "family": "mdlm",
    "model": {"dim": 4},
    "vocab_size": 5,
    "eos_token_id": 0,
    "mask_token_id": 1,
    "pad_token_id": None,
    "block_sizes": [2],
}


class Tied(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, size)
        self.head = nn.Linear(size, 5, bias=False)
        self.head.weight = self.embed.weight


_HEADER = b'{"x": "' + b"a" * 5000 + b'"}'
LONG_NAMES = len(_HEADER).to_bytes(8, "little") + _HEADER


def opened(folder: Path):
    return read_files(folder, read_config(folder))


def written(folder: Path, model: nn.Module | None = None) -> Path:
    write_checkpoint(folder, CONFIG, (model or Tied()).state_dict(), "{}")
    return folder


def test_what_was_written_is_read_and_tied_weights_are_stored_once(tmp_path: Path):
    model, other = Tied(), Tied()
    found = opened(written(tmp_path / "run", model))
    assert set(found.weights) == {"embed.weight"}
    assert found.config == {"format_version": 1, **CONFIG}
    load_weights(other, found)
    assert torch.equal(other.head.weight, model.embed.weight)


def test_nothing_unfinished_is_left_beside(tmp_path: Path):
    names = {p.name for p in written(tmp_path).iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    def broken(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    before = opened(written(tmp_path)).weights["embed.weight"]
    save_state(tmp_path, 1, {"step": 1})
    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(CheckpointError, match=r"No space left on device.*--resume"):
        written(tmp_path)
    with pytest.raises(CheckpointError, match=r"failed writing file.*--resume"):
        save_state(tmp_path, 2, {"step": 2})
    assert torch.equal(opened(tmp_path).weights["embed.weight"], before)
    assert load_state(tmp_path) == {"step": 1}
    assert not list(tmp_path.rglob(".*.partial"))


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path):
    from safetensors.torch import save_file

    model = Tied()
    folder = written(tmp_path)
    with torch.no_grad():
        model.embed.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="diverged"):
        write_checkpoint(folder, CONFIG, model.state_dict(), "{}")
    opened(folder)
    save_file({"embed.weight": model.embed.weight.detach()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed\.weight holds NaN"):
        opened(folder)


def test_another_shape_or_tensor_is_named(tmp_path: Path):
    folder = written(tmp_path)
    with pytest.raises(CheckpointError, match=r"embed\.weight is \(5, 4\), the model needs"):
        load_weights(Tied(8), opened(folder))
    with pytest.raises(CheckpointError, match=r"weight is missing|weight bias is missing"):
        load_weights(nn.Linear(2, 2), opened(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "no checkpoint here"),
        ("config.json", "{", "not readable as JSON"),
        ("config.json", "[]", "no family"),
        ("config.json", json.dumps({**CONFIG, "format_version": 9}), "format version 9"),
        ("config.json", '{"family": "mdlm", "format_version": 1}', "shape is missing"),
        ("model.safetensors", None, "is missing"),
        ("model.safetensors", "garbage", "damaged"),
        ("model.safetensors", LONG_NAMES, r"damaged \(.{,200}\); copy it again$"),
        ("tokenizer.json", None, "is missing"),
        ("tokenizer.json", b"\xff", "cannot be read"),
        ("tokenizer_config.json", b"\xff", "cannot be read"),
        ("config.json", b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_line(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
):
    folder = written(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=message):
        opened(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": 5}, r"ids \[0, 5, None\] .* vocabulary of 5, which cannot be"),
        ({"mask_token_id": "x"}, "which cannot be"),
        ({"eos_token_id": None}, "which cannot be"),
        ({"pad_token_id": -1}, "which cannot be"),
        ({"vocab_size": None}, "which cannot be"),
        ({"mask_token_id": 0}, "end of text and mask are one token"),
        ({"block_sizes": []}, r"block_sizes is \[\]"),
        ({"block_sizes": "8"}, "block_sizes is '8'"),
        ({"block_sizes": [8, 0]}, "no list of sizes"),
    ],
    ids=str,
)
def test_numbers_that_no_checkpoint_has_are_one_clear_line(tmp_path: Path, changes, message):
    folder = written(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(CheckpointError, match=message):
        opened(folder)
    for name in changes:
        content.pop(name)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="copy it again"):
        opened(folder)


def test_the_last_two_states_are_kept_and_the_newest_is_read(tmp_path: Path):
    assert load_state(tmp_path) is None
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"step": step, "x": torch.ones(2)})
    assert [p.name for p in saved_states(tmp_path)] == ["step-00000002", "step-00000003"]
    state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 3


def test_a_state_that_was_interrupted_is_not_seen(tmp_path: Path):
    save_state(tmp_path, 1, {"step": 1})

    class Stop:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, 2, {"step": Stop()})
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step-00000001"]


def test_a_damaged_state_names_itself(tmp_path: Path):
    save_state(tmp_path, 1, {"step": 1})
    (tmp_path / "state" / "step-00000001" / "state.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="step-00000001 to use the state before"):
        load_state(tmp_path)
