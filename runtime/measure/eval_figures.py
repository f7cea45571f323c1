"""What a measured bound says about a text: the figures of `dlm-eval` and `dlm-train --evaluate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..text.tokenizer import Tokenizer
from .evaluate import EvalResult


def eval_figures(
    result: EvalResult, tokenizer: Tokenizer, stream: Sequence[int], eos_token_id: int
) -> dict[str, Any]:
    """Returns a measured stream's figures, bits per character among them.

    Args:
        stream: Documents with the tokens around each; its first token is given.
    """
    # Windows follow each other without gaps, so the scored tokens are one stretch of the stream.
    num_chars = len(tokenizer.decode(stream[1 : 1 + result.num_tokens]))
    return {
        "perplexity": result.perplexity,
        "perplexity_low": result.perplexity_low,
        "perplexity_high": result.perplexity_high,
        "nats_per_token": result.nats_per_token,
        # A tokenizer may leave no character of what it does not know.
        "bits_per_char": result.total_nats / math.log(2) / max(num_chars, 1),
        "num_tokens": result.num_tokens,
        "num_samples": result.num_samples,
        "num_documents": sum(token == eos_token_id for token in stream),
        "num_chars": num_chars,
    }


def eval_line(report: Mapping[str, Any]) -> str:
    """Returns the figures in a line, with `engine`, `precision`, `block` and `seconds`."""
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
