"""`dlm-eval`: how well a bundle predicts a text, on whatever engine runs it, without torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError
from ..process import peak_rss_mib
from .common import ENGINE, EXPECT_SHA256, THREADS, DlmCommand, common_options, print_json
from .progress import bar

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..text.framing import Framing
    from ..text.tokenizer import Tokenizer

_NAME = "dlm-eval"
_OTHER_FORMATS = (".jsonl", ".json", ".parquet", ".gz", ".zst")


@click.command(_NAME, cls=DlmCommand)
@click.argument("model", metavar="MODEL.dlm")
@click.option(
    "--data", required=True, metavar="FILE", help="UTF-8 text, <|endoftext|> between documents."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N documents.")
@click.option("--block", type=click.IntRange(min=1), help="Positions denoised together.")
@click.option("--context", type=click.IntRange(min=2), help="Tokens per window.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal masks.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Draw until perplexity is known this well (relative, 95 %) ...",
)
@click.option(
    "--max-samples",
    type=click.IntRange(min=4),
    default=64,
    show_default=True,
    help="... or so many masks of each text are drawn.",
)
@ENGINE
@THREADS
@EXPECT_SHA256
@common_options
def main(
    model: str,
    data: str,
    limit: int | None,
    engine: str,
    threads: int | None,
    expect_sha256: str | None,
    as_json: bool,
    verbose: int,
    **measure: Any,
) -> None:
    """Measures the bound on a text's perplexity, with the interval of its random masks.

    Every token of the text but the first is scored exactly once; equal seeds give equal masks, so
    that two bundles of one model compare in pairs. Models that write from left to right are
    exact.
    """
    from ..measure.evaluate import eval_line
    from .load import load_pipeline

    with load_pipeline(
        _NAME,
        model,
        engine=engine,
        threads=threads,
        expect_sha256=expect_sha256,
        verbose=verbose,
    ) as loaded:
        report = evaluate_file(loaded, data, limit, **measure)
    if as_json:
        print_json(report)
        return
    click.echo(eval_line(report))


def evaluate_file(
    pipeline: Pipeline,
    data: str,
    limit: int | None,
    *,
    block: int | None,
    context: int | None,
    seed: int,
    margin: float,
    max_samples: int,
) -> dict[str, Any]:
    """Returns what --json prints.

    Raises:
        DataError: a file that is no text, or too short.
        ConfigError: a block or context that the bundle has not.
    """
    import numpy as np

    from ..measure.evaluate import eval_figures, evaluate_ids
    from ..text.documents import file_sha256

    manifest, tokenizer = pipeline.manifest, pipeline.tokenizer
    model = pipeline.model
    block_size = model.family.windows(manifest, model.specs, block).block
    begin = time.perf_counter()
    stream = list(_stream(data, limit, tokenizer, manifest.framing))
    ids = np.array(stream, np.int64)
    with bar() as show:
        result = evaluate_ids(
            model,
            ids,
            context=context,
            block_size=block_size,
            seed=seed,
            relative_half_width=margin,
            max_samples=max_samples,
            progress=show,
        )
    return {
        **eval_figures(result, tokenizer, stream, manifest.eos_token_id),
        "engine": pipeline.engines.name,
        "precision": manifest.precision,
        "block": block_size,
        "seed": seed,
        "data_sha256": file_sha256(data),
        "bundle_sha256": pipeline.bundle.sha256,
        "seconds": time.perf_counter() - begin,
        "peak_rss_mib": peak_rss_mib(),
    }


def _stream(data: str, limit: int | None, tokenizer: Tokenizer, framing: Framing) -> Iterator[int]:
    from ..text.documents import by_document, read_pieces

    suffix = Path(data).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise DataError(
            f"data file {data} is {suffix}, wanted plain text; write its documents to a .txt file "
            "with <|endoftext|> between them"
        )
    # Encoded in pieces, as in training: a whole one takes many times its size.
    for texts in islice(by_document(read_pieces(data)), limit):
        yield from framing.document(chain.from_iterable(map(tokenizer.encode, texts)))


if __name__ == "__main__":
    main()
