"""One process of `beside_llama_cpp`: a short prompt continued, a long one read.

    python decode_worker.py llama model.gguf job.json
    python -m dlm_edge.benchmarks.decode_worker bundle model.dlm job.json

The job has `threads`, `short` and `long` (token ids of two prompts) and `tokens`, how many are
generated. Prints a line at the first token and a JSON object at the end. As a script it needs the
package llama-cpp-python and nothing of dlm-edge, so it runs in an environment of its own.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Read = Callable[[Sequence[int]], None]
Continue = Callable[[Sequence[int], int], Iterator[object]]


def llama(path: str, threads: int, context: int) -> tuple[Read, Continue]:
    """Opens a GGUF file with llama.cpp: how to read a prompt, and how to continue one greedily."""
    import llama_cpp as lib  # pyright: ignore[reportMissingImports]

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda level, text, data: None
    )
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = context, context, 512
    settings.n_threads = settings.n_threads_batch = threads
    state = lib.llama_init_from_model(model, settings)
    greedy = lib.llama_sampler_init_greedy()

    def run(ids: Sequence[int]) -> None:
        array = (lib.llama_token * len(ids))(*ids)
        if lib.llama_decode(state, lib.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(state)

    def read(ids: Sequence[int]) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(state), True)
        run(ids)

    def go_on(ids: Sequence[int], tokens: int) -> Iterator[object]:
        read(ids)
        for number in range(tokens):
            token = lib.llama_sampler_sample(greedy, state, -1)
            yield token
            if number + 1 < tokens:
                run([token])

    go_on.keep = quiet  # type: ignore[attr-defined]  # the library calls it until the end
    return read, go_on


def bundle(path: str, threads: int, context: int) -> tuple[Read, Continue]:
    """Opens a bundle: how to read a prompt, and how to continue one greedily, past its end."""
    from ..runtime.families.base import Request
    from ..runtime.generate import Generation
    from ..runtime.pipeline import Pipeline

    del context
    pipeline = Pipeline.load(path, threads=threads)
    manifest = pipeline.manifest
    ends = manifest.ends

    def go_on(ids: Sequence[int], tokens: int) -> Iterator[object]:
        request = Request(
            prompt_ids=tuple(ids),
            max_tokens=tokens,
            seed=0,
            sample_index=0,
            settings=pipeline.settings(temperature=0.0),
            banned_ids=ends,
        )
        yield from Generation(pipeline.model, request)

    def read(ids: Sequence[int]) -> None:
        for _ in go_on(ids, 1):
            pass

    return read, go_on


def timed(act: Callable[[], object]) -> dict[str, float]:
    """Runs it; returns the seconds and CPU seconds that it took."""
    begin, used = time.perf_counter(), time.process_time()
    act()
    return {"s": time.perf_counter() - begin, "cpu_s": time.process_time() - used}


def main(kind: str, path: str, job_path: str) -> None:
    """Reads, continues and reads again, as the module's docstring says."""
    job: dict[str, Any] = json.loads(Path(job_path).read_text())
    context = len(job["long"]) + job["tokens"] + 64
    read, go_on = (llama if kind == "llama" else bundle)(path, job["threads"], context)
    text = go_on(job["short"], job["tokens"])
    next(text)
    print("first", flush=True)
    number = 0

    def generate() -> None:
        nonlocal number
        number = sum(1 for _ in text)

    generation = timed(generate)
    read(job["long"])  # shapes and buffers of long prompts are made
    prompt = timed(lambda: read(job["long"]))
    print(
        json.dumps({
            "generated": number,
            "generate_tps": number / generation["s"],
            "generate_cpu_tps": number / generation["cpu_s"],
            "prompt_tps": len(job["long"]) / prompt["s"],
            "prompt_cpu_tps": len(job["long"]) / prompt["cpu_s"],
        }),
        flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
