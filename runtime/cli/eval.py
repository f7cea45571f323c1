"""`dlm-eval`: how well a bundle predicts a text, on whatever engine runs it, without torch."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError
from ..process import peak_rss_mib
from .common import ENGINE, EXPECT_SHA256, THREADS, DlmCommand, common_options, print_json
from .progress import bar

if TYPE_CHECKING:
    from ..pipeline import Pipeline

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
@click.option("--seed", default=0, help="Equal seeds give equal masks.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    help="Draw until perplexity is known this well (relative, 95 %) ...",
)
@click.option(
    "--max-samples",
    type=click.IntRange(min=4),
    default=64,
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
        _NAME, model, engine=engine, threads=threads, expect_sha256=expect_sha256, verbose=verbose
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
    from ..measure.evaluate import evaluate_documents
    from ..text.documents import by_document, file_sha256, read_pieces

    _require_plain_text(data)
    # Encoded in pieces, as in training: a whole document takes many times its size.
    documents = islice(by_document(read_pieces(data)), limit)
    with bar() as show:
        figures = evaluate_documents(
            pipeline.model,
            pipeline.tokenizer,
            documents,
            context=context,
            block_size=block,
            seed=seed,
            relative_half_width=margin,
            max_samples=max_samples,
            progress=show,
        )
    return {
        **figures,
        "data_sha256": file_sha256(data),
        "bundle_sha256": pipeline.bundle.sha256,
        "peak_rss_mib": peak_rss_mib(),
    }


def _require_plain_text(data: str) -> None:
    suffix = Path(data).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise DataError(
            f"data file {data} is {suffix}, wanted plain text; write its documents to a .txt file "
            "with <|endoftext|> between them"
        )


if __name__ == "__main__":
    main()
