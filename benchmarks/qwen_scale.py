"""Export at the scale of a real model: random weights in Qwen2.5's shape, from folder to tokens.

    python -m dlm_edge.benchmarks.qwen_scale --tokenizer FOLDER --work FOLDER [--size 0.5b]

FOLDER of the tokenizer holds tokenizer.json and tokenizer_config.json of Qwen2.5. What is made of
the random weights says nothing; time, memory and bytes are those of the real model. Each command
runs in a process of its own; its time and the peak of its resident set size are the kernel's.

| step | command |
|---|---|
| checkpoint | a Hugging Face folder of bfloat16 weights, normal(0.02), made here |
| convert | dlm-train --family tidar --init … --max-steps 0 |
| export | dlm-export … --precision fp16 / int8, for the CPU and for a board |
| gate | the board's graphs through TensorRT-RTX's parser and builder, where it is installed |
| run | dlm-run on the CPU, a few tokens |
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import DlmError
from .report import record, shortened, write_json

SHAPES = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
    },
}
COMMON = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""Of Qwen2.5-0.5B's and 1.5B's config.json, the keys that shape a graph."""
MIB = 1 << 20
GATE = """
import sys
from pathlib import Path
from dlm_edge.runtime.bundle import open_bundle
from dlm_edge.runtime.engines.tensorrt_build import BuildSettings, build_plan
import tensorrt_rtx_bindings as trt

def configure(config):
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)

bundle = open_bundle(sys.argv[1])
for file in sorted({spec.file for spec in bundle.manifest.graphs}):
    specs = [spec for spec in bundle.manifest.graphs if spec.file == file]
    plan = build_plan(
        trt, bundle.member(file), specs, BuildSettings(optimization_level=0), configure=configure
    )
    print(file, plan.data.nbytes >> 20, "MiB")
"""


def make_checkpoint(folder: Path, tokenizer: Path, config: Mapping[str, Any]) -> None:
    """Writes a Hugging Face folder of random weights, tensor after tensor."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    dim, hidden = config["hidden_size"], config["intermediate_size"]
    key = dim // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], dim),
        "model.norm.weight": (dim,),
    }
    for layer in range(config["num_hidden_layers"]):
        own = {
            "input_layernorm.weight": (dim,),
            "post_attention_layernorm.weight": (dim,),
            "self_attn.o_proj.weight": (dim, dim),
            "mlp.gate_proj.weight": (hidden, dim),
            "mlp.up_proj.weight": (hidden, dim),
            "mlp.down_proj.weight": (dim, hidden),
        }
        for letter, rows in (("q", dim), ("k", key), ("v", key)):
            own[f"self_attn.{letter}_proj.weight"] = (rows, dim)
            own[f"self_attn.{letter}_proj.bias"] = (rows,)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        # A norm that is all ones would hide what its weight does.
        mean, spread = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.02)
        tensors[name] = tensor.normal_(mean, spread, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def measured(what: str, command: Sequence[str]) -> dict[str, Any]:
    """Runs a command of this package; its seconds and peak MiB. DlmError if it fails."""
    shown = ["TensorRT-RTX's builder:", *command[2:]] if command[0] == "-c" else command[1:]
    shown = [shortened(word).removeprefix("dlm_edge.") for word in shown]
    click.echo(f"{what}: {' '.join(shown)}", err=True)
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        click.echo(f"  {line.rstrip()}", err=True)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise DlmError(f"{what} ended with status {process.returncode}: {' '.join(lines[-1:])}")
    return {
        "what": what,
        "command": " ".join(shown),
        "wall_s": time.perf_counter() - begin,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,  # Linux counts KiB
        # Lines name files, in whose folders nobody is interested.
        "output": [" ".join(map(shortened, line.split())) for line in lines[-12:]],
    }


@click.command(cls=DlmCommand)
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True, help="Its folder.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where files go.")
@click.option("--size", type=click.Choice(list(SHAPES)), default="0.5b")
@click.option("--layers", type=click.IntRange(min=1), help="Fewer layers, to try it out.")
@click.option("--block", default=4, help="Tokens drafted at a time.")
@click.option("--context", default=128, help="Positions of the cache.")
@click.option(
    "--steps",
    default="fp16:cpu,int8:cpu,fp16:orin-nano,int8:orin-nano",
    help="What to export, precision:target.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write JSON here.")
def main(
    tokenizer: Path,
    work: Path,
    size: str,
    layers: int | None,
    block: int,
    context: int,
    steps: str,
    json_path: Path | None,
) -> None:
    """Exports a model of Qwen2.5's shape with random weights, and runs it."""
    source, checkpoint = work / "hugging-face", work / "checkpoint"
    if not (source / "model.safetensors").exists():
        click.echo("making the random checkpoint", err=True)
        config = {**COMMON, **SHAPES[size]}
        if layers is not None:
            config["num_hidden_layers"] = layers
        # In a process of its own: a command's peak is at least that of the process it is born of.
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            other.submit(make_checkpoint, source, tokenizer, config).result()
    found: list[dict[str, Any]] = []
    about = record()

    def note(what: str, command: Sequence[str], **more: Any) -> None:
        """Measures a command; what there is so far is kept, for the whole takes an hour."""
        found.append({**measured(what, command), **more})
        if json_path is not None:
            write_json(json_path, {**about, "size": size, "steps": found})

    if not (checkpoint / "config.json").exists():
        note("convert", _train(source, checkpoint, block))
    for step in steps.split(","):
        precision, _, target = step.partition(":")
        bundle = work / f"{precision}-{target}.dlm"
        bundle.unlink(missing_ok=True)
        # Random weights have no text to be calibrated on.
        extra = ["--uncalibrated"] if precision == "int8" else []
        note(
            f"export {step}",
            ["-m", "dlm_edge.export.cli", str(checkpoint), "--target", target, "--precision",
             precision, "--block", str(block), "--context", str(context), *extra,
             "-o", str(bundle)],
        )  # fmt: skip
        if target == "cpu":
            note(
                f"run {step}",
                ["-m", "dlm_edge.runtime.cli.run", str(bundle), "Once upon a time", "--max-tokens",
                 "8", "--verbose"],
                bundle_mib=bundle.stat().st_size / MIB,
            )  # fmt: skip
        else:
            note(f"gate {step}", ["-c", GATE, str(bundle)], bundle_mib=bundle.stat().st_size / MIB)


def _train(source: Path, checkpoint: Path, block: int) -> list[str]:
    return [
        "-m", "dlm_edge.train.cli", "--family", "tidar", "--init", str(source), "--max-steps", "0",
        "--block-size", str(block), "--out", str(checkpoint),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
