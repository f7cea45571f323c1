"""What a running training shows and logs: a progress bar or plain lines, and metric curves."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...runtime.errors import ConfigError, brief

LINE_EVERY_S = 15.0
"""Seconds between lines when stderr is not a terminal."""


class Curves(Protocol):
    """Where metrics go."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Records metrics of one step."""
        ...

    def write_text(self, name: str, text: str, step: int) -> None:
        """Records a text of one step."""
        ...

    def close(self) -> None:
        """Flushes and ends."""
        ...


class NoCurves:
    """Records nothing."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def write_text(self, name: str, text: str, step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class TensorBoardCurves:
    """Event files under OUT/logs."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed run logged beyond the state it is resumed from.
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()


class WandbCurves:
    """A Weights & Biases run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        try:
            self._run = wandb.init(project="dlm-edge", dir=str(folder), config=dict(settings))
        except wandb.Error as error:
            raise ConfigError(
                f"--log wandb: {brief(error, 160)}; run `wandb login`, or give another --log"
            ) from error

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def write_text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: text}, step=step)

    def close(self) -> None:
        self._run.finish()


def make_curves(kind: str, out: Path, settings: Mapping[str, Any], first_step: int) -> Curves:
    """Opens what `--log` asks for; raises ConfigError if it is unknown or not installed."""
    match kind:
        case "tensorboard":
            return TensorBoardCurves(out / "logs", first_step)
        case "wandb":
            return WandbCurves(out, settings)
        case "none":
            return NoCurves()
        case _:
            raise ConfigError(f"--log {kind!r}: choose tensorboard, wandb or none")


class ProgressBar:
    """Loss, tokens/s and time left on stderr: a bar in a terminal, else a line now and then."""

    def __init__(self, *, num_steps: int | None, first_step: int, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = None
        self._loss: float | None = None
        self._last_line = 0.0
        self._num_steps = num_steps
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=num_steps, initial=first_step, unit="step", file=sys.stderr, desc="train"
            )

    def update(
        self, step: int, loss: float, tokens_per_s: float, left_s: float, lr: float, force: bool
    ) -> None:
        """Shows one step; `left_s` is the expected rest of the run in seconds."""
        # Smoothed: the loss of one batch swings with its noise level.
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        text = f"loss {self._loss:.3f}  {tokens_per_s:,.0f} tok/s  ETA {_clock(left_s)}"
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(text)
        elif not self._quiet and (force or time.monotonic() - self._last_line >= LINE_EVERY_S):
            self._last_line = time.monotonic()
            total = f"/{self._num_steps}" if self._num_steps else ""
            print(f"step {step}{total}  {text}  lr {lr:.2e}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
