"""How well a model predicts a text: its likelihood bound, with the Monte-Carlo interval.

One code for every engine and family: a bundle's engines (`dlm-eval`) and torch's
(`dlm-train --evaluate`) give equal masks for equal seeds, so that figures compare in pairs.

The text is cut into windows of `context` tokens with stride context - 1; each window's first token
is given, every other token of the text is scored exactly once. The interval is about the
Monte-Carlo draw on this fixed text, not about other texts. Samples come in antithetic pairs, and a
pair's mean per window is one observation, so that the windows' variances add up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..bundle.manifest import Manifest
from ..errors import ConfigError, DataError
from ..families.base import LoadedModel
from ..families.window import banned_ids
from ..noise.philox import check_key
from ..text.tokenizer import Tokenizer

FIRST_SAMPLES = 4
"""Two pairs: the fewest that have a variance."""
LIKELIHOOD = "perplexity"
"""The figure of families whose bound is one of the likelihood."""
MARGIN = 1.1
"""Draw a tenth more than the variance so far asks for, since it is itself an estimate."""

Progress = Callable[[int, int], None]
"""Called with (windows done, windows planned), both counted once per sample; plans can grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """A bound on a text's perplexity. Low and high enclose it with 95 % over the draws."""

    perplexity: float
    perplexity_low: float
    perplexity_high: float
    nats_per_token: float
    num_tokens: int
    """Scored tokens."""
    num_samples: int
    """Monte-Carlo draws per window; 1 for exact likelihoods."""
    total_nats: float
    """Of all scored tokens; bits per character follow from it."""
    windows: tuple[tuple[float, int], ...]
    """Of each window, nats (mean over draws) and scored tokens: what models compare in pairs by."""


def eval_figures(
    result: EvalResult, tokenizer: Tokenizer, stream: Sequence[int], eos_token_id: int
) -> dict[str, Any]:
    """Returns a measured stream's figures, bits per character among them.

    Args:
        stream: Documents with the tokens around each; its first token is given.
    """
    # Windows follow each other without gaps, so the scored tokens are one stretch of the stream.
    text = tokenizer.decode(stream[1 : 1 + result.num_tokens])
    num_chars, num_bytes = len(text), len(text.encode("utf-8", "surrogatepass"))
    figures = asdict(result)
    bits = figures.pop("total_nats") / math.log(2)
    # A tokenizer may leave no character of what it does not know.
    figures["bits_per_char"] = bits / max(num_chars, 1)
    figures["bits_per_byte"] = bits / max(num_bytes, 1)
    num_documents = sum(token == eos_token_id for token in stream)
    return {**figures, "num_documents": num_documents, "num_chars": num_chars}


def evaluate_documents(
    model: LoadedModel,
    tokenizer: Tokenizer,
    documents: Iterable[Iterable[str]],
    *,
    block_size: int | None,
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """Measures documents, given in pieces of text; options and errors of `evaluate_ids`.

    Returns:
        What `eval_figures` gives, `engine`, `precision`, `block`, `seed` and `seconds`.
    """
    begin = time.perf_counter()
    manifest = model.manifest
    block = model.family.windows(manifest, model.specs, block_size).block
    stream: list[int] = []
    for texts in documents:
        stream += manifest.framing.document(chain.from_iterable(map(tokenizer.encode, texts)))
    ids = np.array(stream, np.int64)
    result = evaluate_ids(model, ids, block_size=block, seed=seed, **options)
    figures = eval_figures(result, tokenizer, stream, manifest.eos_token_id)
    family = model.family
    if family.figure != LIKELIHOOD:
        sizes = {name: options[name] for name in ("context", "limit") if name in options}
        windows = windows_of(model, ids, block_size=block, **sizes)
        figures = _without_likelihood(figures, family.figure)
        figures["by_noise"] = dict(family.by_noise(model, windows, seed=seed))
    return {
        **figures,
        "engine": model.engines.name,
        "precision": manifest.precision,
        "block": block,
        "seed": seed,
        "seconds": time.perf_counter() - begin,
    }


def _without_likelihood(figures: Mapping[str, Any], figure: str) -> dict[str, Any]:
    """Gives what remains of a measurement that is no bound: nats of another figure."""
    low, high = (math.log(figures[f"perplexity_{end}"]) for end in ("low", "high"))
    kept = {
        name: value
        for name, value in figures.items()
        if not name.startswith(("perplexity", "bits_per"))
    }
    return {"figure": figure, "nats_low": low, "nats_high": high, **kept}


def _figure_line(report: Mapping[str, Any]) -> str:
    """As `eval_line`, of a model without a likelihood."""
    levels = "; ".join(
        f"noise {level}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        for level, found in report["by_noise"].items()
    )
    return (
        f"{report['figure']} {report['nats_per_token']:.4f} nats/token ({report['nats_low']:.4f} "
        f"to {report['nats_high']:.4f} with 95 %), the mean over noise levels; no likelihood "
        f"exists, so there is no perplexity; {levels}; {report['num_tokens']} tokens of "
        f"{report['num_documents']} documents, {report['num_samples']} samples, block "
        f"{report['block']}, {report['engine']} {report['precision']}, {report['seconds']:.1f} s"
    )


def eval_line(report: Mapping[str, Any]) -> str:
    """Returns the figures in a line, with `engine`, `precision`, `block` and `seconds`."""
    if "figure" in report:
        return _figure_line(report)
    low, high = report["perplexity_low"], report["perplexity_high"]
    interval, drawn = f"{low:.4g} to {high:.4g} with 95 %", ""
    if low == high and report["num_samples"] == 1:
        interval = "exact"
    else:
        drawn = f", {report['num_samples']} samples, block {report['block']}"
    return (
        f"perplexity {report['perplexity']:.4g} ({interval}), {report['nats_per_token']:.4f} "
        f"nats/token, {report['bits_per_char']:.4f} bits/char; {report['num_tokens']} tokens of "
        f"{report['num_documents']} documents{drawn}, {report['engine']} "
        f"{report['precision']}, {report['seconds']:.1f} s"
    )


def cut_windows(ids: np.ndarray, context: int, block: int) -> list[np.ndarray]:
    """Cuts a token stream into windows that overlap by one token.

    The last, shorter window is cut to whole blocks, and dropped if fewer than 2 remain (unless it
    is the only one).

    Raises:
        DataError: Not even one block.
    """
    ids = np.asarray(ids)
    windows: list[np.ndarray] = []
    for start in range(0, max(1, len(ids) - 1), context - 1):
        window = ids[start : start + context]
        if len(window) < context:
            num_blocks = len(window) // block
            if num_blocks < (2 if windows else 1):
                break
            window = window[: num_blocks * block]
        windows.append(np.ascontiguousarray(window, np.int32))
    if not windows:
        raise DataError(
            f"the text has {len(ids)} tokens, fewer than one block of {block}; give a longer one"
        )
    return windows


def evaluate_ids(
    model: LoadedModel,
    ids: np.ndarray,
    *,
    context: int | None = None,
    block_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    relative_half_width: float = 0.01,
    max_samples: int = 64,
    progress: Progress | None = None,
) -> EvalResult:
    """Measures the bound of a token stream.

    Args:
        ids: (n,) stream: end-of-text, document, end-of-text, document, …
        context: Tokens per window; None: all positions that the graphs have room for.
        block_size: Positions denoised together; None: what decoding would take.
        limit: Only so many tokens from the start; None: all.
        relative_half_width: Draw until perplexity is known this well (95 %) …
        max_samples: … or so many samples are drawn.

    Raises:
        DataError: A text too short, or with ids that no text holds.
    """
    if max_samples < FIRST_SAMPLES or not 0 < relative_half_width < 1:
        raise ConfigError(
            f"max_samples must be at least {FIRST_SAMPLES} and relative_half_width in (0, 1), "
            f"found {max_samples} and {relative_half_width}"
        )
    check_key(seed, 0)
    family = model.family
    windows = windows_of(model, ids, context=context, block_size=block_size, limit=limit)
    totals: list[np.ndarray] = []
    planned = 1 if family.exact else FIRST_SAMPLES
    while len(totals) < planned:
        samples = range(len(totals), planned)
        done, in_all = len(totals) * len(windows), planned * len(windows)
        sums = bound_totals(
            model, windows, samples=samples, seed=seed, block_size=block_size,
            progress=progress and (lambda now, _, d=done, n=in_all, p=progress: p(d + now, n)),
        )  # fmt: skip
        totals.extend(sums)
        if not family.exact:
            planned = _samples_needed(np.array(totals), windows, relative_half_width, max_samples)
    return _result(np.array(totals), windows)


def windows_of(
    model: LoadedModel,
    ids: np.ndarray,
    *,
    context: int | None = None,
    block_size: int | None = None,
    limit: int | None = None,
) -> list[np.ndarray]:
    """Cuts a stream into the windows that `evaluate_ids` scores; its arguments and errors."""
    block, longest = model.family.windows(model.manifest, model.specs, block_size)
    if context is not None and not 2 <= context <= longest:
        raise ConfigError(
            f"context must be in [2, {longest}] for block size {block}, not {context}"
        )
    windows = cut_windows(np.asarray(ids)[:limit], context or longest, block)
    _check_windows(model.manifest, windows)
    return windows


def bound_totals(
    model: LoadedModel,
    windows: Sequence[np.ndarray],
    *,
    samples: range,
    seed: int,
    block_size: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Measures the bound of each window under numbered draws: what compares engines in pairs.

    Returns:
        (samples, windows) float64 nats. Equal seeds, samples and windows mean equal masks.
    """
    sums = np.zeros((len(samples), len(windows)))
    bounds = model.family.bound(model, windows, seed=seed, samples=samples, block_size=block_size)
    for number, nats in enumerate(bounds):
        sums[:, number] = nats.sum(axis=1)
        if progress is not None:
            progress((number + 1) * len(samples), len(samples) * len(windows))
    return sums


def _check_windows(manifest: Manifest, windows: Sequence[np.ndarray]) -> None:
    banned = banned_ids(manifest)
    ids: list[int] = np.unique(np.concatenate(windows)).tolist()
    bad = [token for token in ids if token in banned or not 0 <= token < manifest.vocab_size]
    if bad:
        raise DataError(
            f"the text holds token {bad[0]}, which is mask, padding or outside the vocabulary of "
            f"{manifest.vocab_size}; tokenize it with the bundle's tokenizer"
        )


def half_width(totals: np.ndarray, num_tokens: int) -> float:
    """Gives the 95 % half width of nats per token.

    Args:
        totals: (samples, windows) nats; rows 2k and 2k + 1 are one pair.

    Returns:
        0 for a single sample, which is what exact likelihoods have.
    """
    if len(totals) < FIRST_SAMPLES:
        return 0.0
    pairs = (totals[0::2] + totals[1::2]) / 2
    num_pairs = len(pairs)
    variance = pairs.var(axis=0, ddof=1)
    total = float(variance.sum())
    if total == 0.0:
        return 0.0
    # Welch-Satterthwaite: windows of unequal variance share their degrees of freedom.
    freedom = (num_pairs - 1) * total**2 / float((variance**2).sum())
    return student_quantile(freedom) * math.sqrt(total / num_pairs) / num_tokens


def student_quantile(freedom: float) -> float:
    """Gives the 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5; 1 % off at 3)."""
    z = 1.959963984540054
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _samples_needed(
    totals: np.ndarray, windows: Sequence[np.ndarray], target: float, max_samples: int
) -> int:
    """Gives how many samples to have in all: as many as now when they are enough. Even."""
    have = len(totals)
    reached = half_width(totals, _num_scored(windows)) / math.log1p(target)
    if reached <= 1.0:
        return have
    wanted = math.ceil(have * min(reached**2 * MARGIN, 4.0))
    wanted += wanted % 2
    return max(have, min(wanted, max_samples - max_samples % 2))


def _num_scored(windows: Sequence[np.ndarray]) -> int:
    return sum(len(window) - 1 for window in windows)


def exp_nats(nats: float) -> float:
    """Gives e^nats, at most e^700: the bound of a score far off would not fit a float."""
    return math.exp(min(nats, 700.0))


def _result(totals: np.ndarray, windows: Sequence[np.ndarray]) -> EvalResult:
    num_tokens = _num_scored(windows)
    total_nats = float(totals.mean(axis=0).sum())
    nats = total_nats / num_tokens
    margin = half_width(totals, num_tokens)
    return EvalResult(
        perplexity=exp_nats(nats),
        perplexity_low=exp_nats(nats - margin),
        perplexity_high=exp_nats(nats + margin),
        nats_per_token=nats,
        num_tokens=num_tokens,
        num_samples=len(totals),
        total_nats=total_nats,
        windows=tuple(
            (float(one), len(window) - 1)
            for one, window in zip(totals.mean(axis=0), windows, strict=True)
        ),
    )
