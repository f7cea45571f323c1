"""Who competes in `decode`, and the process that runs one of them.

Each contestant lives in a process of its own with one thread setting, so that the thread pools of
PyTorch and ONNX Runtime never meet; it waits for orders on stdin (one JSON object per line) and
answers on stdout, so that rounds of all contestants interleave and only one computes at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runtime.bundle.bundle import open_bundle
from ..runtime.families.table import read_rule
from ..runtime.ops.core import Form, Primitive
from ..runtime.ops.host import NumpyOps
from ..runtime.ops.unmask import UNMASK
from ..runtime.ops.unmask.contract import UnmaskCanvas, UnmaskSpec
from ..runtime.ops.unmask.host import NumpyUnmask
from ..runtime.pipeline import Pipeline

CONTESTANTS: Mapping[str, str] = {
    "eager": "(a) PyTorch eager, whole canvas",
    "compiled": "(b) the same under torch.compile",
    "cached": "(c) PyTorch, block KV cache, our rule",
    "ours": "(d) dlm-edge on ONNX Runtime",
    "causal": "(e) causal baseline on our engine",
    "int8": "(d) in int8",
    "causal_int8": "(e) in int8",
}
PYTORCH = ("eager", "compiled", "cached")
OF_OTHER_BUNDLES = ("causal", "int8", "causal_int8")
"""Contestants that an option of their name gives the bundle of."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Decode = Callable[[int, Mapping[str, Any]], dict[str, Any]]
"""(sample index, settings that override) to a result: token_ids, nfe, seconds, maybe outside."""


class EndlessUnmask(NumpyUnmask):
    """Unmasking in which no text ends: eos is a banned id like any other, at its price."""

    def canvas(self, spec: UnmaskSpec) -> UnmaskCanvas:
        banned = tuple(sorted({*spec.banned, *spec.end_ids}))
        return super().canvas(replace(spec, banned=banned, end_ids=()))


class EndlessOps(NumpyOps):
    """The ops of the runtime, with endless unmasking."""

    def bind(self, primitive: Primitive[Form]) -> Form:
        if primitive.name == UNMASK.name:
            self._bound.setdefault(UNMASK.name, EndlessUnmask())
        return super().bind(primitive)


def override(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Lays overrides over settings; temperature 0 drops what has no effect there."""
    merged = {**settings, **overrides}
    if merged.get("temperature") == 0:
        merged = {k: v for k, v in merged.items() if k not in ("top_k", "top_p")}
    return merged


def _ours(spec: Mapping[str, Any]) -> Decode:
    pipeline = Pipeline.load(spec["bundle"], engine="onnxruntime", threads=spec["threads"])
    pipeline.model = replace(pipeline.model, ops=EndlessOps())

    def decode(sample: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
        result = pipeline.generate(
            max_tokens=spec["num_tokens"],
            seed=spec["seed"],
            sample_index=sample,
            **override(spec["settings"], overrides),
        ).result()
        seconds = result.seconds["total"] - result.seconds["prepare"]
        return {
            "token_ids": list(result.token_ids),
            "nfe": result.nfe,
            "seconds": seconds,
            "outside": 1 - result.seconds["engine"] / seconds,
            "text": result.text,
            "approximate": result.approximate,
        }

    return decode


def _pytorch(spec: Mapping[str, Any]) -> Decode:
    import torch

    from ..runtime.text.tokenizer import Tokenizer
    from .peer_weights import check_same, from_bundle, from_checkpoint
    from .peers import BlockCache, WholeCanvas

    torch.set_num_threads(spec["threads"])
    torch.set_num_interop_threads(1)
    checkpoint = spec["checkpoint"]
    peer = from_checkpoint(Path(checkpoint)) if checkpoint else from_bundle(Path(spec["bundle"]))
    if spec["contestant"] == "cached":
        check_same(peer, open_bundle(spec["bundle"]))
        decoder = BlockCache(peer, spec["num_tokens"], spec["block"])
    else:
        compiled = spec["contestant"] == "compiled"
        decoder = WholeCanvas(peer, spec["num_tokens"], compiled=compiled)
    tokenizer = Tokenizer.load(Path(spec["tokenizer"]))

    def decode(sample: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
        rule = read_rule(override(spec["settings"], overrides))
        begin = time.perf_counter()
        decoded = decoder.decode(rule, spec["seed"] * 1_000_003 + sample)
        text = tokenizer.decode(decoded.token_ids)
        return {
            "token_ids": decoded.token_ids,
            "nfe": decoded.nfe,
            "seconds": time.perf_counter() - begin,
            "text": text,
        }

    return decode


def serve(spec: Mapping[str, Any]) -> None:
    """Runs in the contestant's process: answers orders until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    decode = (_pytorch if spec["contestant"] in PYTORCH else _ours)(spec)
    begin = time.perf_counter()
    decode(0, {})  # compiles, allocates, touches the weights
    answers.write(json.dumps({"warm_up_seconds": time.perf_counter() - begin}) + "\n")
    answers.flush()
    for line in sys.stdin:
        order = json.loads(line)
        answers.write(json.dumps(decode(order["sample"], order["overrides"])) + "\n")
        answers.flush()


class Contestant:
    """The handle on a contestant's process."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Starts the process; `wait` for it before the first order."""
        self.name = spec["contestant"]
        environment = dict(os.environ)
        environment.update(dict.fromkeys(THREAD_VARIABLES, str(spec["threads"])))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dlm_edge.benchmarks.contestants", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(
                f"contestant {self.name} ended with status {self._process.wait()}; see its message"
            )
        return json.loads(line)

    def wait(self) -> float:
        """Waits until it is warm; returns the seconds of its first text."""
        return self._answer()["warm_up_seconds"]

    def decode(self, sample: int, **overrides: Any) -> dict[str, Any]:
        """Lets it write one text."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"sample": sample, "overrides": overrides}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def main() -> None:
    """Entry point of the contestant's process: its specification is the only argument."""
    from ..runtime.errors import DlmError

    try:
        serve(json.loads(sys.argv[1]))
    except DlmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
