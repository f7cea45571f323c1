"""Memory of one training step of TiDAR at Qwen2.5's shapes, on a CPU, sequence by sequence.

    python -m dlm_edge.benchmarks.train_memory [--size 0.5b] [--context 512]

Weights are random; forward and backward of one sequence run in bfloat16 with adapters of rank 32,
with and without `--recompute`, each in a process of its own. What is measured is the process's
anonymous memory, sampled every 20 ms: `weights` once the model stands, `peak` while the step runs,
gradients included. The optimiser adds two float32 per trained weight. A GPU's allocator and kernels
differ; this is the part that both have.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import click

from ..jetson.sensors.memory import process_memory
from ..runtime.cli.common import DlmCommand
from .qwen_scale import COMMON, SHAPES
from .report import out_option, print_table, record, write_json

RANK, MASK, EOS, BLOCK = 32, 151_665, 151_643, 8
COLUMNS = (
    ("size", "size"),
    ("context", "context"),
    ("recompute", "recompute"),
    ("weights GiB", "weights_gib"),
    ("peak GiB", "peak_gib"),
    ("CPU s", "cpu_s"),
)


def make_model(size: str, context: int) -> tuple[Any, Any, dict[str, Any]]:
    """Makes family, model with adapters, and config at one of Qwen2.5's shapes."""
    import torch

    from ..train.checkpoints.hugging_face import read_shape
    from ..train.families import FAMILIES
    from ..train.nn.config import SHAPE_OPTIONS
    from ..train.nn.layers import inverse_frequencies
    from ..train.nn.lora import Lora

    shape = read_shape({**COMMON, **SHAPES[size]}, size)
    family = FAMILIES["tidar"]
    config = family.make_config(
        {
            **{name: getattr(shape, name) for name in SHAPE_OPTIONS},
            "vocab_size": shape.vocab_size,
            "context": context,
            "eos_token_id": EOS,
            "mask_token_id": MASK,
            "block_sizes": str(BLOCK),
        }
    )
    with torch.device("meta"):
        model = family.make_model(config["model"])
    # Drawn in place: a normal distribution over so many weights would take longer than the step.
    model = model.to_empty(device="cpu")
    model.head.weight = model.embed.weight  # emptying has parted them
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    model.inv_freq = inverse_frequencies(shape.head_dim, shape.rope_theta, reciprocal=True)
    Lora(rank=RANK, scale=2.0, mask_token_id=MASK, tied=True).add(model, narrow=True)
    return family, model.train(), config


def measure(size: str, context: int, recompute: bool, send: Any) -> None:
    """Runs one step and sends a row of figures."""
    import torch

    from ..train.data.batches import Batch

    torch.set_num_threads(1)
    family, model, config = make_model(size, context)
    model.trunk.recompute = recompute
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    weights = _resident_gib()
    peaks, done = [weights], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(_resident_gib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.process_time()
    ids = torch.randint(0, EOS, (1, context))
    with torch.autocast("cpu", torch.bfloat16):
        loss = family.loss(model, Batch(ids=ids), torch.Generator(), config).loss
    loss.backward()
    done.set()
    watcher.join()
    send.send(
        {
            "size": size,
            "context": context,
            "recompute": recompute,
            "weights_gib": weights,
            "peak_gib": max(peaks),
            "cpu_s": time.process_time() - begin,
        }
    )


def _resident_gib() -> float:
    found = process_memory(Path("/"))
    assert found is not None, "wants Linux's /proc"
    return found.anonymous / 1024


@click.command("train_memory", cls=DlmCommand)
@click.option("--size", type=click.Choice(sorted(SHAPES)), multiple=True, help="Default: both.")
@click.option("--context", type=click.IntRange(min=BLOCK), default=512)
@out_option("train_memory")
def main(size: tuple[str, ...], context: int, out: Path) -> None:
    """Measures what a training step holds, with and without layers computed twice."""
    circumstances, rows = record(), []
    processes = multiprocessing.get_context("spawn")
    for name in size or sorted(SHAPES):
        for recompute in (True, False):
            receive, send = processes.Pipe(duplex=False)
            child = processes.Process(target=measure, args=(name, context, recompute, send))
            child.start()
            send.close()
            try:
                rows.append(receive.recv())
            except EOFError:
                click.echo(f"{name}: the step did not end; is there memory for it?", err=True)
            child.join()
            print_table(COLUMNS, rows[-1:])
    write_json(out, {**circumstances, "rank": RANK, "block_size": BLOCK, "rows": rows})


if __name__ == "__main__":
    main()
