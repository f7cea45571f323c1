"""Text of a causal model's own making: `python -m dlm_edge.train.own_text CHECKPOINT`.

A draft is kept where it says what the same weights' greedy decoding says. On people's text the next
eight tokens are open; on the model's own continuation they are a function of the text before. So
the drafting half learns most from the latter: mix this file with the real text and go on training.

    python -m dlm_edge.train.own_text checkpoint --data stories.txt --out own/own.txt
    dlm-train --family tidar --init checkpoint --data own ...

Parses, calls `continuations`, writes the file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import DataError
from ..runtime.files import write_whole
from ..runtime.text.documents import SEPARATOR
from ..runtime.text.framing import Framing
from .files import make_folder


@click.command("own-text", cls=DlmCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Real text whose beginnings are continued.")
@click.option("--num", type=click.IntRange(1), default=4096, help="Texts to write.")
@click.option("--batch", type=click.IntRange(1), default=128, help="Texts at a time.")
@click.option("--seed", default=0, help="Which real texts, in which order.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: the idle cores]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Text file to write.")
def main(
    checkpoint: Path, data: str, num: int, batch: int, seed: int, threads: int | None, out: Path
) -> None:
    """Writes greedy continuations of a causal CHECKPOINT, to train its drafts on."""
    # torch takes seconds to import, and its absence is one line.
    import numpy as np
    import torch

    from .continuations import GIVEN, continuations, open_causal
    from .data.sources import documents, find_source
    from .families.options import forbidden_ids
    from .torch_engine import idle_cores

    torch.set_num_threads(threads or idle_cores())
    model, tokenizer, config = open_causal(checkpoint)
    make_folder(out.parent)
    real = list(documents(find_source(data)))
    order = np.random.default_rng(seed).permutation(len(real))
    framing = Framing.of(config)
    made: list[str] = []
    found = continuations(
        model,
        tokenizer,
        (real[index] for index in order),
        framing=framing,
        ends=(framing.eos_token_id, *config.get("end_ids", ())),
        banned=forbidden_ids(config),
        batch=batch,
    )
    with click.progressbar(length=num, label="own text", file=sys.stderr) as bar:
        for text in found:
            made.append(text)
            bar.update(1)
            if len(made) == num:
                break
    if not made:
        raise DataError(f"{data}: no text is long enough to be continued; wanted {GIVEN[0]} tokens")
    write_whole(out, f"\n{SEPARATOR}\n".join(made).encode())
    click.echo(f"{out}: {len(made):,} texts")


if __name__ == "__main__":
    main()
