"""A tiny corpus, tiny settings, and the command as a real process."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dlm_edge.train.config import TrainConfig

TESTS = Path(__file__).resolve().parents[1]

WORDS = [
    *("the", "a", "cat", "dog", "sun", "moon", "ran", "sat", "saw", "big", "red", "home"),
    *("and", "then", "they", "was", "happy", "in", "to", "day"),
]

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import conftest, torch
torch.set_num_threads(1)
from dlm_edge.train.cli import main
from dlm_edge.train.loop.progress import ProgressBar
shown = ProgressBar.update
def update(self, step, loss, *rest, **named):
    if not self._quiet:
        print(f"loss: {{loss!r}}", file=sys.stderr)
    shown(self, step, loss, *rest, **named)
ProgressBar.update = update
main()
"""
"""A real file, since processes of a distributed run start it again."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 120 documents."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(5, 40))) + "." for _ in range(120)]
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 model in Hugging Face's format; nobody writes here."""
    from public_folders import make_public

    folder = tmp_path_factory.mktemp("qwen") / "sound"
    make_public(folder)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(stories: Path, cache: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes settings of a run of seconds; keyword arguments replace them."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "family": "mdlm",
            "out": str(tmp_path / "run"),
            "data": str(stories),
            "vocab_size": 280,
            "cache_dir": str(cache),
            "context": 16,
            "batch_size": 4,
            "max_steps": 6,
            "warmup_steps": 2,
            "eval_every": 3,
            "eval_rows": 4,
            "save_every": 2,
            "save_minutes": 0.0,
            "log": "none",
            "options": {"dim": 16, "num_layers": 1, "num_heads": 2, "block_sizes": "8,full"},
        }
        return TrainConfig(**{**values, **changes})

    return make


def free_port() -> str:
    """A port for processes of one run to meet at, which no other worker's run may take meanwhile.

    Not one of those that the system hands out to whoever asks for any.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(100):
        port = 12_000 + 100 * worker + next(_asked) % 100
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no port is free")


_asked = itertools.count()


@pytest.fixture
def command(cache: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `dlm-train` as a process of its own, over this checkout."""

    script = tmp_path / "dlm_train.py"
    script.write_text(SCRIPT.format(tests=str(TESTS)))

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), *arguments, "--cache-dir", str(cache)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "MASTER_PORT": free_port(),
            },
        )

    return start
