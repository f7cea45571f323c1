"""From settings to a checkpoint: prepares data and model, runs the loop, writes the results."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from tokenizers import Tokenizer

from ...runtime.cache import cache_root
from ...runtime.errors import CheckpointError, ConfigError
from ...runtime.text.framing import Framing
from ..checkpoints.checkpoint import (
    Checkpoint,
    load_state,
    read_companions,
    read_config,
    read_json,
    save_state,
    write_checkpoint,
)
from ..checkpoints.convert import resolve_config
from ..checkpoints.start import Start, TrunkStart, read_framing, read_start, tokenizer_of
from ..config import (
    PRECISIONS,
    SETTINGS,
    TrainConfig,
    changed_settings,
    load_settings,
    save_config,
)
from ..data.batches import Batches, held_out_batch
from ..data.shards import Corpus, prepare
from ..data.sources import find_source, fingerprint, pieces
from ..data.tokenizer import (
    make_tokenizer,
    needed_tokens,
    special_ids,
    tokenizer_cache,
    vocab_size_of,
)
from ..families import FAMILIES
from ..files import make_folder
from ..nn.lora import Lora
from ..pretrained import draw_texts
from .heldout import frequency_nats
from .loop import Hooks, Loop, RunState
from .progress import NoCurves, ProgressBar, make_curves
from .sharding import fsdp_strategy


def train(config: TrainConfig, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Trains a model.

    Returns:
        A summary: checkpoint, status, steps, tokens_seen, seconds, best_step, held_out, and
        frequency_nats: what a guess by token frequency costs on the held-out text.
    """
    if config.family not in FAMILIES:
        raise ConfigError(f"--family {config.family}: choose one of {', '.join(FAMILIES)}")
    out, changes = Path(config.out), []
    if resume and (out / SETTINGS).is_file():
        changes = changed_settings(load_settings(out / SETTINGS), config)
    family = FAMILIES[config.family]
    if config.init is None:
        # What does not fit is found before the text is prepared, whatever the tokens' ids will be.
        ids = {"eos_token_id": 0, "mask_token_id": 1, "vocab_size": config.vocab_size}
        resolve_config(family, config.options, ids, config.context)
    # Before any other process is started: they find everything in the cache.
    state = load_state(out) if resume else None
    framing = _framing(config, out, has_state=state is not None)
    tokenizer, corpus = _prepare(config, framing, needed_tokens(framing, mask=family.has_mask))
    config, start = _begin(config, out, has_state=state is not None)
    special = {**special_ids(tokenizer, framing), "vocab_size": vocab_size_of(tokenizer)}
    model_config = resolve_config(family, config.options, special, config.context)
    fabric = _launch(config)
    torch.manual_seed(config.seed)
    module = family.make_model(model_config["model"])
    beside = {"tokenizer.json": tokenizer.to_str(), **read_companions(out)}
    source = _source(out, start)
    if source:
        model_config["source"] = source
    if start is not None:
        start.load(module, tokenizer)
        beside |= start.companions(tokenizer)
        start = None  # as large as the model
    lora = _fit(module, model_config, config)
    context, fields = config.context, family.fields(model_config)
    batches = Batches(
        corpus.train,
        context=context,
        batch_size=config.batch_size,
        seed=config.seed,
        fields=fields,
    )
    held_out = held_out_batch(
        corpus.valid, context=context, max_rows=config.eval_rows, fields=fields
    )
    loop = Loop(fabric, family, module, model_config, config, batches, held_out, lora)
    if state is not None:
        _refuse_other_data(out, corpus)
        loop.load(state)
        state = None
    elif resume and fabric.is_global_zero:
        print(f"{out}: no state saved yet, starting at step 0", file=sys.stderr)
    progress = ProgressBar(
        num_steps=config.num_steps,
        first_step=loop.run_state.step,
        quiet=quiet or not fabric.is_global_zero,
    )
    if changes and loop.run_state.step:
        progress.say(f"from step {loop.run_state.step} on: {', '.join(changes)}")
    return _run(fabric, loop, corpus, beside, out, progress)


def _framing(config: TrainConfig, out: Path, *, has_state: bool) -> Mapping[str, Any]:
    """What the model that a run starts from has around a text; empty: it starts from none."""
    if has_state:
        return read_framing(out / "last")
    return {} if config.init is None else read_framing(config.init, _lent_tokenizer(config))


def _lent_tokenizer(config: TrainConfig) -> str | None:
    """The tokenizer of a model to start from that has none of its own."""
    assert config.init is not None
    made_here = config.tokenizer in ("bpe", "char")
    return None if made_here or tokenizer_of(config.init) else config.tokenizer


def _source(out: Path, start: Start | TrunkStart | None) -> dict[str, Any]:
    """Where the public model comes from whose weights a run started from; empty if from none."""
    if isinstance(start, Start):
        return dict(start.source or start.checkpoint.config.get("source") or {})
    last = out / "last"
    return dict(read_json(last).get("source") or {}) if (last / "config.json").is_file() else {}


def _begin(
    config: TrainConfig, out: Path, *, has_state: bool
) -> tuple[TrainConfig, Start | TrunkStart | None]:
    """Reads what a run starts from; the settings that come back have its shape."""
    if config.init is None:
        return config, None
    if has_state:
        # A state has the weights that the run started from, its settings their shape.
        shape = load_settings(out / SETTINGS)["options"]
        return replace(config, options={**shape, **config.options}), None
    start = read_start(config.init, _lent_tokenizer(config))
    return replace(config, options=start.options(config.options, config.family)), start


def _fit(
    module: torch.nn.Module, model_config: Mapping[str, Any], config: TrainConfig
) -> Lora | None:
    """Makes a model with its weights use less memory in training, as the settings ask."""
    if config.recompute:
        if not hasattr(getattr(module, "trunk", None), "recompute"):
            raise ConfigError(f"--recompute: models of family {config.family} cannot; leave it out")
        module.trunk.recompute = True  # type: ignore[union-attr]
    if config.lora is None:
        return None
    lora = Lora(
        rank=config.lora,
        scale=config.lora_scale,
        mask_token_id=model_config["mask_token_id"],
        tied=bool(model_config["model"].get("tie_embeddings")),
    )
    # Sharding wants one dtype per layer.
    lora.add(module, narrow=config.precision == "bf16" and config.strategy != "fsdp")
    return lora


def _run(
    fabric: Fabric,
    loop: Loop,
    corpus: Corpus,
    beside: Mapping[str, str],
    out: Path,
    progress: ProgressBar,
) -> dict[str, Any]:
    config, first = loop.config, loop.run_state.step
    if fabric.is_global_zero:
        make_folder(out)
    millions = sum(p.numel() for p in loop.module.parameters()) / 1e6
    moving = sum(p.numel() for p in loop.module.parameters() if p.requires_grad) / 1e6
    trained = "" if config.lora is None else f", {moving:.2f} M of them trained"
    progress.say(
        f"{config.family}, {millions:.2f} M parameters{trained}; "
        f"{len(corpus.train.tokens):,} training and {len(corpus.valid.tokens):,} held-out tokens "
        f"({corpus.note})"
    )
    curves = NoCurves()
    if fabric.is_global_zero:
        curves = make_curves(config.log, out, config.to_json(), first)
        save_config(config, out / SETTINGS)
    try:
        with _asked_to_stop() as asked:
            hooks = _hooks(fabric, loop, corpus, beside, out, asked)
            status = loop.run(hooks, progress, curves)
    except BaseException:
        # A run whose first step failed can be started again with better settings.
        if fabric.is_global_zero and not loop.run_state.step:
            (out / SETTINGS).unlink(missing_ok=True)
        raise
    finally:
        progress.close()
        curves.close()
    run_state = loop.run_state
    return {
        "checkpoint": str(out),
        "status": status,
        "steps": run_state.step,
        "tokens_seen": run_state.step * config.batch_size * config.context,
        "seconds": round(run_state.elapsed_s, 1),
        "best_step": run_state.best_step,
        "held_out": run_state.figures,
        "has_likelihood": loop.family.has_likelihood,
        "frequency_nats": frequency_nats(corpus.train.tokens, loop.held_out.ids.numpy()),
    }


def _refuse_other_data(out: Path, corpus: Corpus) -> None:
    """Raises CheckpointError if the run in `out` was trained or measured on other tokens."""
    saved = read_config(out / "last").get("training", {})
    now = corpus.train.sha256, corpus.valid.sha256
    if (saved.get("data_sha256"), saved.get("valid_sha256")) != now:
        raise CheckpointError(
            f"{out}: the text, its held-out part or the tokenizer has changed since the run was "
            f"started; restore it, or start a new run from these weights: --init {out} with "
            "another --out"
        )


def _prepare(
    config: TrainConfig, framing: Mapping[str, Any], tokens: Sequence[str]
) -> tuple[Tokenizer, Corpus]:
    source = find_source(config.data, config.text_field)
    valid = None if config.valid is None else find_source(config.valid, config.text_field)
    cache = Path(config.cache_dir) if config.cache_dir else cache_root()
    sha = fingerprint(source)
    tokenizer = make_tokenizer(
        config.tokenizer,
        config.vocab_size,
        (piece.text for piece in pieces(source)),
        tokenizer_cache(cache, sha, config.tokenizer, config.vocab_size),
        tokens,
    )
    corpus = prepare(
        source,
        valid,
        tokenizer,
        cache,
        Framing.of(special_ids(tokenizer, framing)),
        context=config.context,
        valid_percent=config.valid_percent,
    )
    return tokenizer, corpus


def _launch(config: TrainConfig) -> Fabric:
    accelerator = config.accelerator
    has_gpu = torch.cuda.is_available() and accelerator in ("auto", "cuda")
    if config.precision == "fp16" and not has_gpu:
        raise ConfigError("--precision fp16 needs a GPU; use bf16 or fp32 on this machine")
    if accelerator == "cuda" and not has_gpu:
        raise ConfigError("--accelerator cuda: torch finds no GPU here; leave it out, or use cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--accelerator mps: torch finds none here; leave it out, or use cpu")
    if has_gpu and config.devices > torch.cuda.device_count():
        raise ConfigError(
            f"--devices {config.devices}: torch finds {torch.cuda.device_count()} GPUs; ask for "
            "fewer, or give --accelerator cpu"
        )
    strategy: Any = config.strategy
    if config.strategy == "auto":
        strategy = "ddp" if config.devices > 1 else "auto"
    if config.strategy == "fsdp":
        strategy = fsdp_strategy(config.devices)
    if accelerator == "auto" and not has_gpu:
        accelerator = "cpu"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=accelerator,
        strategy=strategy,
        devices=config.devices,
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def _hooks(
    fabric: Fabric,
    loop: Loop,
    corpus: Corpus,
    beside: Mapping[str, str],
    out: Path,
    asked: list[bool],
) -> Hooks:
    """Makes what puts the run on disk; `beside` holds the tokenizer and its companions."""
    companions = dict(beside)
    tokenizer_json = companions.pop("tokenizer.json")

    def write(folder: Path, run_state: RunState, weights: dict[str, torch.Tensor]) -> None:
        write_checkpoint(folder, described(run_state), weights, tokenizer_json, companions)

    def described(run_state: RunState) -> dict[str, Any]:
        training = {
            "settings": loop.config.to_json(),
            "run_state": asdict(run_state),
            "tokens_seen": run_state.step * loop.config.batch_size * loop.config.context,
            "data_sha256": corpus.train.sha256,
            "valid_sha256": corpus.valid.sha256,
            "torch": str(torch.__version__),
        }
        return {**loop.model_config, "training": training}

    def on_best(run_state: RunState, weights: dict[str, torch.Tensor]) -> None:
        if fabric.is_global_zero:
            write(out, run_state, weights)

    def on_save(
        run_state: RunState, weights: dict[str, torch.Tensor], state: Mapping[str, Any]
    ) -> None:
        if fabric.is_global_zero:
            write(out / "last", run_state, weights)
            if not run_state.figures:  # nothing was evaluated yet: the last is the best there is
                write(out, run_state, weights)
            save_state(out, run_state.step, state)
        fabric.barrier()

    def sample(weights: dict[str, torch.Tensor]) -> list[str]:
        if not fabric.is_global_zero:
            return []
        checkpoint = Checkpoint(
            path=out, config=dict(loop.model_config), weights=weights, tokenizer_json=tokenizer_json
        )
        return draw_texts(checkpoint, loop.config.samples)

    samples = loop.config.samples and loop.config.log != "none"
    return Hooks(
        on_best=on_best,
        on_save=on_save,
        sample=sample if samples else None,
        interrupted=lambda: asked[0],
    )


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[bool]]:
    """Turns the first Ctrl-C (or SIGTERM) into a wish to stop; the second one kills as usual."""
    asked = [False]
    kept = {}

    def ask(number: int, _frame: Any) -> None:
        asked[0] = True
        signal.signal(number, kept[number])

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            kept[number] = signal.signal(number, ask)
    try:
        with _answered() if kept else contextlib.nullcontext():
            yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Answers a signal at once: its handler waits until the operation in hand is over."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def answer() -> None:
        if os.read(reader, 1):
            with contextlib.suppress(OSError):  # a closed stderr must not stop the saving
                os.write(2, b"\nstopping after this step, with all saved; Ctrl-C again ends it\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # which ends the thread's reading
        thread.join()
        os.close(reader)
