"""Draws texts from a bundle (or takes human ones) and measures them.

    python -m dlm_edge.benchmarks.samples model.dlm --temperature 1 --judge ar.dlm --out ours.json
    python -m dlm_edge.benchmarks.samples --human valid.txt --judge ar.dlm --out human.json
    python -m dlm_edge.benchmarks.quality human=human.json ours=ours.json --judge ar.dlm

Sample i of a run is `sample_index` i under one seed, so a run is repeated by its command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from ..calibration.losses.text_quality import measure
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError, DataError
from ..runtime.measure.judge import Judge
from ..runtime.pipeline import Pipeline
from .quality import QUALITY_COLUMNS, cut_words, read_texts
from .report import print_table, record, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One drawn text."""

    text: str
    """Prompt and continuation: what is measured."""
    num_tokens: int
    """New tokens."""
    nfe: int
    seconds: float
    """Wall time without making the engine ready."""
    finish_reason: str
    approximate: bool


def read_prompts(path: Path, num_words: int) -> list[str]:
    """Reads the first words of every text that is longer than that; DataError if none is."""
    prompts = [
        cut_words(text, num_words) for text in read_texts(path) if len(text.split()) > num_words
    ]
    if not prompts:
        raise DataError(f"{path}: wanted texts of over {num_words} words, found none")
    return prompts


def check_variety(pipeline: Pipeline, settings: Mapping[str, Any], prompts: Sequence[str]) -> None:
    """Raises ConfigError where every sample would be the same text."""
    resolved = pipeline.settings(**settings)
    selection = resolved.selection
    chooses_first = selection is not None and selection.chooses_first
    if len(prompts) == 1 and resolved.sampling.greedy and not chooses_first:
        raise ConfigError(
            f"rule {resolved.name} at temperature 0 writes one and the same text for every sample; "
            "give --temperature above 0, or --prompts"
        )


def draw(
    pipeline: Pipeline,
    num_samples: int,
    *,
    seed: int = 0,
    prompts: Sequence[str] = ("",),
    max_tokens: int | None = None,
    settings: Mapping[str, Any],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Sample]:
    """Draws samples; sample i continues prompt i modulo their number."""
    check_variety(pipeline, settings, prompts)
    samples = []
    for index in range(num_samples):
        prompt = prompts[index % len(prompts)]
        result = pipeline.generate(
            prompt, max_tokens=max_tokens, seed=seed, sample_index=index, **settings
        ).result()
        samples.append(
            Sample(
                text=prompt + result.text,
                num_tokens=len(result.token_ids),
                nfe=result.nfe,
                seconds=result.seconds["total"] - result.seconds["prepare"],
                finish_reason=result.finish_reason,
                approximate=result.approximate,
            )
        )
        progress(index + 1)
    return samples


def speed(samples: Sequence[Sample]) -> dict[str, float]:
    """Sums up what the samples took; tokens per second over all of them together."""
    tokens, nfe = sum(s.num_tokens for s in samples), sum(s.nfe for s in samples)
    seconds = sum(s.seconds for s in samples)
    return {
        "tokens": tokens,
        "tokens_per_nfe": tokens / max(nfe, 1),
        "ms_per_nfe": 1e3 * seconds / max(nfe, 1),
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "share_ended": sum(s.finish_reason == "end" for s in samples) / len(samples),
        "share_approximate": sum(s.approximate for s in samples) / len(samples),
    }


def assess(texts: Sequence[str], judge: Judge | None, num_words: int) -> dict[str, Any]:
    """Measures texts as they are, and cut to `num_words` (None if no text is that long)."""
    texts = [text for text in texts if text.strip()]
    long = [cut_words(text, num_words) for text in texts if len(text.split()) >= num_words]

    def figures(chosen: Sequence[str]) -> dict[str, Any]:
        return asdict(measure(chosen, judge.score(chosen) if judge else None))

    cut = figures(long) | {"num_short": len(texts) - len(long), "words": num_words}
    return {"whole": figures(texts), "cut": cut if long else None}


def show_progress(total: int, label: str) -> Callable[[int], None]:
    """Returns a callback that counts on stderr, five times."""

    def update(done: int) -> None:
        if done % -(-total // 5) == 0 or done == total:
            click.echo(f"{label}: {done}/{total}", err=True)

    return update


def _settings(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


@click.command("samples", cls=DlmCommand)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--human", type=click.Path(path_type=Path), help="Measure this text file instead.")
@click.option("--num", default=200, help="Texts.")
@click.option("--seed", default=0)
@click.option("--prompts", type=click.Path(path_type=Path), help="Continue texts of this file.")
@click.option("--prompt-words", default=8, help="Their first words.")
@click.option("--max-tokens", type=int, help="New tokens at most.  [default: the runtime's]")
@click.option("--rule", help="Decoding rule.  [default: the bundle's, as all that follow]")
@click.option("--threshold", type=float)
@click.option("--factor", type=float)
@click.option("--entropy-bound", type=float)
@click.option("--steps", type=int)
@click.option("--temperature", type=float)
@click.option("--top-p", type=float)
@click.option("--block", "block_size", type=int, help="Positions denoised together.")
@click.option("--threads", type=int, help="CPU threads.  [default: all cores, 8 at most]")
@click.option("--words", default=100, help="Also measure cut to these words.")
@click.option(
    "--judge", "judge_path", type=click.Path(path_type=Path), help="A bundle that reads the texts."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write texts and figures as JSON.")
def main(
    bundle: Path | None,
    human: Path | None,
    num: int,
    seed: int,
    prompts: Path | None,
    prompt_words: int,
    max_tokens: int | None,
    threads: int | None,
    words: int,
    judge_path: Path | None,
    out: Path | None,
    **overrides: Any,
) -> None:
    """Draws --num texts from BUNDLE (default: the model that ships) and measures them.

    Prints bits per character (needs --judge), unigram entropy, distinct-4 and repetition of the
    whole texts and of the texts cut to --words words. Figures of two sets compare only at equal
    length and number of texts: use `quality` on the files that --out wrote.
    """
    if human and bundle:
        raise ConfigError("BUNDLE contradicts --human: one draws, the other reads; give one")
    circumstances = record()
    judge = click.get_current_context().with_resource(Judge.open(judge_path))
    settings = _settings(**overrides)
    if human:
        rows = [{"text": text} for text in read_texts(human)[:num]]
        extra: dict[str, Any] = {"source": human.name}
    else:
        with Pipeline.load(bundle, threads=threads) as pipeline:
            starts = read_prompts(prompts, prompt_words) if prompts else [""]
            drawn = draw(
                pipeline,
                num,
                seed=seed,
                prompts=starts,
                max_tokens=max_tokens,
                settings=settings,
                progress=show_progress(num, "samples"),
            )
            rows = [asdict(sample) for sample in drawn]
            extra = {
                "bundle_sha256": pipeline.bundle.sha256,
                "settings": pipeline.settings(**settings).to_json(),
                "seed": seed,
                "speed": speed(drawn),
            }
    quality = assess([row["text"] for row in rows], judge, words)
    shown = [{"name": name} | figures for name, figures in quality.items() if figures]
    print_table(QUALITY_COLUMNS, shown)
    if "speed" in extra:
        keys = ("tokens_per_nfe", "ms_per_nfe", "tokens_per_s", "share_ended")
        print_table([(key, key) for key in keys], [extra["speed"]])
    if out:
        write_json(out, circumstances | extra | {"quality": quality, "samples": rows})


if __name__ == "__main__":
    main()
