"""`dlm-eval`: what a bundle's text is worth, on whatever engine runs it, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, DataError
from ..process import peak_rss_mib
from .common import (
    ENGINE,
    EXPECT_SHA256,
    THREADS,
    DlmCommand,
    Section,
    common_options,
    grouped,
    print_json,
)
from .decoding import decoding_options, take_settings
from .progress import bar

if TYPE_CHECKING:
    from ..measure.judge import Judge
    from ..measure.tasks import TaskOptions
    from ..pipeline import Pipeline

_NAME = "dlm-eval"
_OTHER_FORMATS = (".jsonl", ".json", ".parquet", ".gz", ".zst")
TASKS = ("likelihood", "generate", "continue", "infill", "speed")


class _List(click.ParamType):
    """Values between commas."""

    name = "list"

    def __init__(self, *choices: str) -> None:
        self._choices = choices

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Splits a value; without choices into numbers of 1 or more."""
        if not isinstance(value, str):
            return value
        words = [word.strip() for word in value.split(",")]
        if self._choices:
            for word in words:
                if word not in self._choices:
                    self.fail(f"{word!r} is none of {', '.join(self._choices)}", param, ctx)
            return tuple(dict.fromkeys(words))
        if not all(word.isdecimal() and int(word) for word in words):
            self.fail(f"{value!r}: wanted whole numbers of 1 or more between commas", param, ctx)
        return tuple(dict.fromkeys(map(int, words)))


_TASKS = grouped(
    Section("Tasks"),
    click.option(
        "--tasks",
        type=_List(*TASKS),
        metavar="LIST",
        default="likelihood",
        help=f"Of {', '.join(TASKS)}, between commas.",
    ),
    click.option("--data", metavar="FILE", help="UTF-8 text, <|endoftext|> between documents."),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first N documents."),
    click.option("--seed", default=0, help="Equal seeds give equal noise, prompts and gaps."),
    click.option(
        "--out", type=click.Path(path_type=Path), metavar="DIR",
        help="Write report.json, which --compare reads, and a page there.",
    ),
    click.option(
        "--compare", is_flag=True,
        help="Compare folders that --out wrote, in place of models: one table, in pairs.",
    ),
)  # fmt: skip
_LIKELIHOOD = grouped(
    Section("Likelihood"),
    click.option("--context", type=click.IntRange(min=2), help="Tokens per window."),
    click.option(
        "--margin",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.01,
        help="Draw until perplexity is known this well (relative, 95 %) ...",
    ),
    click.option(
        "--max-samples",
        type=click.IntRange(min=4),
        default=64,
        help="... or so many masks of each text are drawn.",
    ),
)
_WRITING = grouped(
    Section("Texts that the model writes"),
    click.option("--num-texts", type=click.IntRange(min=2), default=100, help="Of each task."),
    click.option("--max-tokens", type=click.IntRange(min=1), help="New tokens at most.  [256]"),
    click.option(
        "--words", "num_words", type=click.IntRange(min=4), default=100,
        help="Texts are cut to so many words and shorter ones left out: figures depend on length.",
    ),
    click.option(
        "--prompt-words", type=click.IntRange(min=1), default=8,
        help="Of a document, for continue.",
    ),
    click.option("--judge", metavar="FILE.dlm", help="A bundle that reads the texts."),
    click.option(
        "--training-data", metavar="FILE", help="Whose words count as known (known_words)."
    ),
    click.option(
        "--speed-steps", type=_List(), metavar="LIST", default="10,50,100,1000",
        help="Values of --steps for speed.",
    ),
)  # fmt: skip


@click.command(_NAME, cls=DlmCommand)
@click.argument("models", metavar="MODEL.dlm | --compare DIR DIR...", nargs=-1, required=True)
@_TASKS
@_LIKELIHOOD
@_WRITING
@ENGINE
@THREADS
@EXPECT_SHA256
@decoding_options()
@common_options
def main(
    models: tuple[str, ...],
    tasks: Sequence[str],
    data: str | None,
    out: Path | None,
    compare: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Measures what a bundle's text is worth.

    likelihood: the bound on a text's perplexity, with the interval of its random masks (models
    that write from left to right are exact). generate, continue: texts from nothing or behind the
    first words of documents, beside what people wrote: a judge's perplexity, entropy, distinct-4,
    repetition, self-BLEU, tokens/s. infill: gaps in documents against what stood there: exact
    match, BLEU, ROUGE, METEOR, chrF. speed: generate at several numbers of steps. All but
    likelihood need the extra `eval`.
    """
    settings = take_settings(given)
    if compare:
        _compare(models, out, as_json)
        return
    model, *others = models
    if others:
        raise ConfigError("one model at a time; --compare takes the folders that --out wrote")
    if data is None:
        raise ConfigError("--data FILE is missing: the text to measure on")
    report = evaluate_bundle(model, data, tasks, settings, draws=out is not None, **given)
    if out is not None:
        from ..measure.eval_report import write_report

        write_report(report, out)
    if as_json:
        from ..measure.eval_report import without_rows

        print_json(without_rows(report))
        return
    from ..measure.eval_report import report_lines

    for line in report_lines(report):
        click.echo(line)
    if out is not None:
        click.echo(f"page: {out / 'report.html'}")


def _compare(folders: Sequence[str], out: Path | None, as_json: bool) -> None:
    from ..measure.eval_report import compare_reports, comparison_lines, read_report, write_page

    if len(folders) < 2:
        raise ConfigError("--compare takes two folders or more that --out wrote")
    found = compare_reports({folder: read_report(Path(folder)) for folder in folders})
    if out is not None:
        write_page(found, out)
    if as_json:
        print_json(found)
        return
    for line in comparison_lines(found):
        click.echo(line)


def evaluate_bundle(
    model: str,
    data: str,
    tasks: Sequence[str],
    settings: Mapping[str, Any],
    *,
    draws: bool = False,
    engine: str = "auto",
    threads: int | None = None,
    expect_sha256: str | None = None,
    verbose: int = 0,
    **given: Any,
) -> dict[str, Any]:
    """Runs tasks on a bundle; gives what --out keeps, as a page too if `draws`.

    Raises:
        DataError: A file that is no text, or too short.
        ConfigError: A block, context or setting that the bundle has not.
    """
    from ..measure.judge import Judge
    from ..text.documents import file_sha256
    from .load import load_pipeline

    _require_plain_text(data)
    rest = [task for task in tasks if task != "likelihood"]
    if rest:
        from ..measure.eval_report import plotting
        from ..measure.overlap import require_libraries

        require_libraries()
        if draws and "speed" in tasks:
            plotting()
    judge_path = given["judge"]
    with (
        load_pipeline(
            _NAME, model, engine=engine, threads=threads, expect_sha256=expect_sha256,
            verbose=verbose,
        ) as loaded,
        Judge.open(judge_path and Path(judge_path)) as judge,
        bar() as show,
    ):  # fmt: skip
        report: dict[str, Any] = {
            "model": Path(model).name,
            "bundle_sha256": loaded.bundle.sha256,
            "seed": given["seed"],
            "engine": loaded.engines.name,
            "precision": loaded.manifest.precision,
            "settings": loaded.settings(**settings).to_json(),
            "judge": judge and judge.name,
            "num_words": given["num_words"],
        }
        if "likelihood" in tasks:
            report |= _likelihood(loaded, data, settings, given, show)
        if rest:
            options = _task_options(data, settings, judge, given)
            report["tasks"] = _run_tasks(loaded, rest, options, given["speed_steps"], show)
    return {**report, "data_sha256": file_sha256(data), "peak_rss_mib": peak_rss_mib()}


def _likelihood(
    pipeline: Pipeline, data: str, settings: Mapping[str, Any], given: Mapping[str, Any], show: Any
) -> dict[str, Any]:
    from ..measure.evaluate import evaluate_documents
    from ..text.documents import by_document, read_pieces

    return evaluate_documents(
        pipeline.model,
        pipeline.tokenizer,
        # Encoded in pieces, as in training: a whole document takes many times its size.
        islice(by_document(read_pieces(data)), given["limit"]),
        context=given["context"],
        block_size=settings.get("block_size"),
        seed=given["seed"],
        relative_half_width=given["margin"],
        max_samples=given["max_samples"],
        progress=show,
    )


def _task_options(
    data: str, settings: Mapping[str, Any], judge: Judge | None, given: Mapping[str, Any]
) -> TaskOptions:
    from ..measure.tasks import TaskOptions
    from ..measure.text_quality import known_words
    from ..text.documents import joined, read_pieces

    training = given["training_data"]
    return TaskOptions(
        documents=list(islice(joined(read_pieces(data)), given["limit"])),
        num_texts=given["num_texts"],
        num_words=given["num_words"],
        prompt_words=given["prompt_words"],
        max_tokens=given["max_tokens"],
        seed=given["seed"],
        settings=settings,
        judge=judge,
        known=known_words(joined(read_pieces(training))) if training else None,
    )


def _run_tasks(
    pipeline: Pipeline, tasks: Sequence[str], options: TaskOptions, steps: Sequence[int], show: Any
) -> dict[str, Any]:
    from ..measure import tasks as known

    found: dict[str, Any] = {}
    for task in tasks:

        def progress(done: int, total: int, task: str = task) -> None:
            show(done, total, task)

        if task == "speed":
            curve = known.speed(pipeline, options, steps, progress)
            found[task] = {count: report.to_json() for count, report in curve.items()}
        else:
            found[task] = known.TASKS[task](pipeline, options, progress).to_json()
    return found


def _require_plain_text(data: str) -> None:
    suffix = Path(data).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise DataError(
            f"data file {data} is {suffix}, wanted plain text; write its documents to a .txt file "
            "with <|endoftext|> between them"
        )


if __name__ == "__main__":
    main()
