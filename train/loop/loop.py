"""The training loop: steps, evaluation, saving. Knows no family and no file format of data.

Everything random is a function of (seed, step): the batch, its noise, dropout. With the weights,
their average and the optimiser's state that is all there is, so a resumed run continues to
bit-identical weights on a CPU (when steps end it; with `max_minutes` the learning rate follows
the clock).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from ...runtime.errors import CheckpointError, DlmError, brief
from ...runtime.measure.text_quality import text_figures
from ..config import TrainConfig
from ..data.batches import Batch, Batches
from ..families.base import Family
from ..nn.lora import Lora
from .heldout import Estimate, mean_nats, measure
from .optim import Ema, lr_factor, make_optimizer, set_lr
from .progress import Curves, ProgressBar
from .sharding import part_like, parts_of_optimizer, whole

_Value = TypeVar("_Value")

_NOISE, _DROPOUT = 7, 8
"""Names of the random streams."""

EVAL_BATCH = 32
"""Sequences of a forward pass in evaluation."""

EVAL_SHARE = 0.2
"""Share of `max_minutes` that one evaluation may take; more held-out sequences are left out."""

FEW_STEPS = 50
"""Steps from which hardly any model learns."""


class DivergedError(DlmError):
    """The loss is not a number any more."""


@dataclass(slots=True, kw_only=True)
class RunState:
    """How far a run is; part of the saved state."""

    step: int = 0
    """Optimiser steps done."""
    eval_rows: int = 0
    """Held-out sequences of every evaluation, or best figures would not compare; 0: not chosen."""
    elapsed_s: float = 0.0
    """Seconds trained, over all resumptions."""
    best_nats: float = math.inf
    """Smallest held-out mean over block sizes."""
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    figures: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Held-out figures of the best evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the loop calls to put things on disk; each runs on every rank."""

    on_best: Callable[[RunState, dict[str, torch.Tensor]], None]
    """Gets the weights to use."""
    on_save: Callable[[RunState, dict[str, torch.Tensor], dict[str, Any]], None]
    """Gets the weights to use and the state."""
    sample: Callable[[dict[str, torch.Tensor]], list[str]] | None
    """Gets the weights to use; gives texts that the model writes. None: the log wants none."""
    interrupted: Callable[[], bool]
    """Whether the user asked to stop."""


class Loop:
    """One training run."""

    def __init__(
        self,
        fabric: Fabric,
        family: Family,
        module: nn.Module,
        model_config: Mapping[str, Any],
        config: TrainConfig,
        batches: Batches,
        held_out: Batch,
        lora: Lora | None = None,
    ) -> None:
        """Sets up model, optimiser and average."""
        self.fabric, self.family, self.config = fabric, family, config
        self.model_config, self.batches, self.held_out = model_config, batches, held_out
        self.lora = lora
        self.run_state = RunState()
        self._reserve_s = 0.0
        """Seconds of `max_minutes` that are kept for the last evaluation and save."""
        if config.compile:
            _compile(module)
        self.module = module
        self.model = fabric.setup_module(module)
        optimizer = make_optimizer(
            module,
            config.optimizer,
            lr=config.lr,
            adamw_lr=config.adamw_lr or config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        # One optimizer in, one out; its wrapper is an Optimizer by class, not by type annotation.
        self.optimizer: Any = fabric.setup_optimizers(optimizer)
        self.ema = Ema(module.parameters(), config.ema) if config.ema else None

    def run(self, hooks: Hooks, progress: ProgressBar, curves: Curves) -> str:
        """Trains to the end; returns "finished", "early stop" or "interrupted".

        Raises:
            DivergedError: if the loss is not finite; what was saved before stays.
        """
        config, run_state = self.config, self.run_state
        begun, before = time.monotonic(), run_state.elapsed_s
        last_save = begun
        evaluated = -1
        first = run_state.step
        self._plan_evaluation(progress)
        self.model.train()
        while True:
            run_state.elapsed_s = before + time.monotonic() - begun
            stop = self._agree(hooks.interrupted())
            if stop or self.progress() >= 1:
                break
            started, loss, norm = time.monotonic(), *self._step()
            run_state.elapsed_s = before + time.monotonic() - begun
            self._report(progress, curves, loss, norm, time.monotonic() - started)
            if config.max_minutes and run_state.step == first + 1:
                self._say_how_many_steps(config.max_minutes, time.monotonic() - started, progress)
            if config.eval_every and run_state.step % config.eval_every == 0:
                evaluated = run_state.step
                self._evaluate(hooks, progress, curves)
                if config.patience and run_state.stale >= config.patience:
                    self._save(hooks)
                    return "early stop"
            due = config.save_every and run_state.step % config.save_every == 0
            late = config.save_minutes and time.monotonic() - last_save > 60 * config.save_minutes
            if due or self._agreed(bool(late)):
                self._save(hooks)
                last_save = time.monotonic()
        if not stop and evaluated != run_state.step:
            self._evaluate(hooks, progress, curves)
        run_state.elapsed_s = before + time.monotonic() - begun
        self._save(hooks)
        return "interrupted" if stop else "finished"

    def progress(self) -> float:
        """Returns the share of the run that is done, by steps or by the clock."""
        share = 0.0
        if self.config.num_steps:
            share = self.run_state.step / self.config.num_steps
        if self.config.max_minutes:
            seconds = 60 * self.config.max_minutes - self._reserve_s
            share = max(share, self.run_state.elapsed_s / max(seconds, 1e-9))
        return min(share, 1.0)

    def _plan_evaluation(self, progress: ProgressBar) -> None:
        """Chooses the run's held-out sequences, once, and keeps time for the last evaluation.

        With `max_minutes` they are fewer if all would take too long. A resumed run keeps them, or
        its best figure would not compare.
        """
        run_state, rows, minutes = self.run_state, len(self.held_out), self.config.max_minutes
        row_s = 0.0
        if minutes and self.progress() < 1:
            started = time.monotonic()
            self.measure(self.held_out[:1])
            row_s = self._agreed(time.monotonic() - started)
        if not run_state.eval_rows:
            fits = max(2, int(EVAL_SHARE * 60 * (minutes or 0) / row_s)) if row_s else rows
            run_state.eval_rows = min(fits, rows)
            if run_state.eval_rows < rows:
                progress.say(
                    f"evaluation: {fits} of {rows} held-out sequences, at {row_s:.1f} s each, to "
                    f"keep to --max-minutes {minutes:g}"
                )
        if run_state.eval_rows < rows:
            chosen = np.linspace(0, rows - 1, run_state.eval_rows).astype(np.int64)
            self.held_out = self.held_out[torch.from_numpy(chosen)]
        if minutes:
            self._reserve_s = min(row_s * len(self.held_out), EVAL_SHARE * 60 * minutes)

    def _say_how_many_steps(self, minutes: float, step_s: float, progress: ProgressBar) -> None:
        """Warns, once a step was timed, of a run that is too short to learn anything."""
        left_s = 60 * minutes - self._reserve_s - self.run_state.elapsed_s
        steps = self.run_state.step + max(0, int(left_s / max(step_s, 1e-9)))
        if steps < FEW_STEPS:
            progress.say(
                f"a step takes {step_s:.1f} s: --max-minutes {minutes:g} ends after about {steps} "
                f"steps, too few to learn from; give more minutes, a smaller --batch-size (now "
                f"{self.config.batch_size}), --context (now {self.config.context}) or --size"
            )

    def _step(self) -> tuple[float, float]:
        """Does one optimiser step; returns its loss in nats per token and gradient norm."""
        config, run_state = self.config, self.run_state
        factor = lr_factor(
            run_state.step,
            self.progress(),
            warmup_steps=config.warmup_steps,
            min_ratio=config.min_lr_ratio,
        )
        set_lr(self.optimizer, factor)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        batch = self.batches.batch(run_state.step)
        parts = world * config.accumulate
        size = len(batch) // parts
        torch.manual_seed(_mix(config.seed, _DROPOUT, run_state.step, rank))
        total = torch.zeros((), device=self.fabric.device)
        for micro in range(config.accumulate):
            part = rank * config.accumulate + micro
            own = batch[part * size : (part + 1) * size].to(self.fabric.device)
            # Equal on all ranks: each draws the noise of the whole batch and keeps its part.
            generator = torch.Generator().manual_seed(_mix(config.seed, _NOISE, run_state.step))
            waiting = micro + 1 < config.accumulate
            with self.fabric.no_backward_sync(self.model, enabled=waiting):
                output = self.family.loss(
                    self.model, own, generator, self.model_config, shard=(part, parts)
                )
                self.fabric.backward(output.loss / config.accumulate)
            total += output.loss.detach() / config.accumulate
        loss = self._mean(total)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} at step {run_state.step}: the training diverged; the last "
                "saved checkpoint is kept; lower --lr or raise --warmup-steps"
            )
        norm = math.nan
        if config.clip_norm:
            found = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
            )
            norm = float(whole(found)) if found is not None else math.nan
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(run_state.step)
        run_state.step += 1
        return loss, norm

    def _report(
        self, progress: ProgressBar, curves: Curves, loss: float, norm: float, seconds: float
    ) -> None:
        config, run_state = self.config, self.run_state
        # A small step may be over before a coarse clock ticks.
        speed = config.batch_size * config.context / seconds if seconds > 0 else 0.0
        done = self.progress()
        left = run_state.elapsed_s * (1 - done) / done if done else math.inf
        lr = self.optimizer.param_groups[0]["lr"]
        progress.update(run_state.step, loss, speed, left, lr, force=run_state.step == 1)
        if run_state.step % 10 == 0:
            curves.write(
                {
                    "train/loss": loss,
                    "train/lr": lr,
                    "train/norm": norm,
                    "train/tokens_per_s": speed,
                },
                run_state.step,
            )

    def _evaluate(self, hooks: Hooks, progress: ProgressBar, curves: Curves) -> None:
        run_state = self.run_state
        with self._weights_to_use():
            started = time.monotonic()
            figures = self.measure(self.held_out)
            if hooks.sample is not None:
                _log_texts(curves, hooks.sample(self.weights()), run_state.step)
            self._reserve_s = self._agreed(time.monotonic() - started)
            mean = mean_nats(figures)
            if not math.isfinite(mean):
                raise DivergedError(f"the held-out loss became {mean} at step {run_state.step}")
            run_state.stale += 1
            if mean < run_state.best_nats:
                run_state.best_nats, run_state.best_step, run_state.stale = mean, run_state.step, 0
                run_state.figures = {name: item.to_json() for name, item in figures.items()}
                hooks.on_best(run_state, self.weights())
        curves.write({f"valid/{name}": item.nats for name, item in figures.items()}, run_state.step)
        shown = "  ".join(f"{name}: {item}" for name, item in figures.items())
        best = " (best)" if run_state.stale == 0 else ""
        progress.say(f"held out at step {run_state.step}, nats/token: {shown}{best}")

    def measure(self, batch: Batch) -> dict[str, Estimate]:
        """Evaluates the weights that the model holds now."""
        with self.fabric.autocast():
            return measure(
                self.family,
                self.module,
                self.model_config,
                batch,
                batch_size=EVAL_BATCH,
                device=self.fabric.device,
            )

    def _save(self, hooks: Hooks) -> None:
        with self._weights_to_use():
            weights = self.weights()
        hooks.on_save(self.run_state, weights, self.state())

    def _weights_to_use(self) -> AbstractContextManager[None]:
        return self.ema.applied() if self.ema is not None else nullcontext()

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns copies of the weights that the model holds now, whole, on the CPU."""
        parts = {name: t.detach() for name, t in whole(self.module.state_dict()).items()}
        if self.lora is not None:
            parts = self.lora.merged(parts)
        return {name: t.cpu().clone() for name, t in parts.items()}

    def state(self) -> dict[str, Any]:
        """Returns what `load` needs to continue exactly."""
        return {
            "run_state": asdict(self.run_state),
            "model": whole(dict(self.module.state_dict())),
            "ema": whole(self.ema.shadow) if self.ema is not None else None,
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken; raises CheckpointError if it does not fit."""
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        try:
            mine = self.module.state_dict()
            split = {name: part_like(t, mine[name]) for name, t in state["model"].items()}
            self.module.load_state_dict(split)
            self.optimizer.load_state_dict(parts_of_optimizer(state["optimizer"], self.optimizer))
            self.run_state = RunState(**state["run_state"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the saved state is of another model, optimizer or version ({brief(error, 200)}); "
                "resume with the settings and the version that the run was started with"
            ) from error
        # The settings rule, not the state: rates, betas and decay may change on --resume.
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(values)
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            for mine, saved in zip(self.ema.shadow, state["ema"], strict=True):
                mine.copy_(part_like(saved, mine))
        elif self.ema is not None:  # the run had no average so far: it starts with the weights
            self.ema = Ema(self.module.parameters(), self.config.ema)

    def _mean(self, value: torch.Tensor) -> float:
        if self.fabric.world_size > 1:
            value = self.fabric.all_reduce(value, reduce_op="mean")  # type: ignore[assignment]
        return float(value)

    def _agree(self, stop: bool) -> bool:
        """Makes rank 0's clock and wish to stop those of all ranks."""
        if self.fabric.world_size > 1:
            stop, self.run_state.elapsed_s = self.fabric.broadcast((stop, self.run_state.elapsed_s))
        return stop

    def _agreed(self, value: _Value) -> _Value:
        """Returns the value of rank 0."""
        return self.fabric.broadcast(value) if self.fabric.world_size > 1 else value


def _log_texts(curves: Curves, texts: Sequence[str], step: int) -> None:
    """Records texts, and what their words say: a model that repeats itself shows there first."""
    if not any(text.split() for text in texts):
        return
    figures = text_figures(texts)
    names = ("entropy", "distinct_4", "repetition")
    values = {f"samples/{name}": figures[name].figure for name in names}
    curves.write({name: v for name, v in values.items() if math.isfinite(v)}, step)
    curves.write_text("samples", "\n\n---\n\n".join(texts), step)


def _compile(module: nn.Module) -> None:
    """Compiles the part of a denoiser whose shapes are fixed, in place: names stay."""
    part = getattr(module, "trunk", module)
    part.compile()


def _mix(*numbers: int) -> int:
    """Makes one 63-bit seed of several numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0]) >> 1
