"""Decoding speed against the plain ways: `make bench`.

    python -m dlm_edge.benchmarks.decode model.dlm --causal ar.dlm --judge judge.dlm

All contestants write exactly the same number of tokens, batch 1, from the start token alone: eos
is never sampled by any of them. One process per contestant and thread count; rounds interleave,
in rotating order; figures are medians over rounds with the smallest and largest, ratios are taken
within rounds. After every round the file is saved; the same command goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..runtime.bundle.bundle import default_bundle_path, open_bundle
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError, DlmError
from ..runtime.families.table import decoding_blocks, decoding_settings, read_rule
from ..runtime.families.window import choose_block
from .contestants import CONTESTANTS, OF_OTHER_BUNDLES, PYTORCH, Contestant
from .decode_report import agreement, report
from .report import out_option, record, write_json

OUTSIDE_TEMPERATURES = (0.0, 1.0)


def make_specs(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Resolves options into what each contestant's process is told; ConfigError if impossible."""
    bundle_path = given["bundle"] or default_bundle_path()
    bundle = open_bundle(bundle_path)
    manifest = bundle.manifest
    if manifest.family != "mdlm":
        raise ConfigError(f"{bundle_path}: wanted a bundle of family mdlm, found {manifest.family}")
    names = ("rule", "threshold", "factor", "entropy_bound", "steps", "temperature", "top_p")
    settings = decoding_settings(manifest, {name: given.get(name) for name in names})
    shapes = decoding_blocks(manifest)
    own_block = settings.to_json().get("block_size")
    block = choose_block(shapes, given["block"] or own_block, manifest.block_sizes)
    if shapes[block][-1].context < block:
        raise ConfigError(f"{bundle_path}: no graph of block {block} with a context; export one")
    room = min(manifest.max_position, shapes[block][-1].context + block)
    opened = {name: open_bundle(given[name]) for name in OF_OTHER_BUNDLES if given[name]}
    room = min([room, *(item.manifest.max_position for item in opened.values())])
    if room <= given["tokens"]:
        click.echo(f"{room - 1} new tokens: with the start token the model has no more", err=True)
    num_tokens = min(given["tokens"], room - 1)
    sampling: dict[str, Any] = {"temperature": settings.sampling.temperature}
    sampling |= {"top_p": settings.sampling.top_p} if settings.sampling.top_p else {}
    plain = {"rule": "low_confidence", "steps": min(given["plain_steps"], num_tokens), **sampling}
    ours = {**settings.to_json(), "block_size": block}
    chosen = given["contestants"] or tuple(CONTESTANTS)
    specs: dict[str, dict[str, Any]] = {}
    for name in CONTESTANTS:
        if name not in chosen or (name in OF_OTHER_BUNDLES and name not in opened):
            continue
        whole = given["whole_checkpoint"] or given["checkpoint"]
        checkpoint = whole if name in ("eager", "compiled") else given["checkpoint"]
        causal = {"rule": "next_token", **sampling}
        rule = {"eager": plain, "compiled": plain, "causal": causal, "causal_int8": causal}
        specs[name] = {
            "contestant": name,
            "bundle": str(given[name] if name in opened else bundle_path),
            "bundle_sha256": opened.get(name, bundle).sha256,
            "checkpoint": str(checkpoint) if checkpoint and name in PYTORCH else None,
            "tokenizer": str(bundle.member("tokenizer.json")),
            "num_tokens": num_tokens,
            "block": block,
            "seed": given["seed"],
            "settings": rule.get(name, ours),
        }
    _check(specs, manifest.block_sizes, given)
    return specs


def _check(
    specs: Mapping[str, Mapping[str, Any]], block_sizes: Sequence[int], given: Mapping[str, Any]
) -> None:
    """Refuses peers that would do badly or fail for want of training or of a rule."""
    if set(specs) & {"eager", "compiled"} and not given["whole_checkpoint"]:
        canvas = next(iter(specs.values()))["num_tokens"] + 1
        if max(block_sizes) < canvas:
            raise ConfigError(
                f"the model has learnt blocks of {block_sizes} but no whole canvas of {canvas}; "
                "give --whole-checkpoint, or leave eager and compiled out with --contestant"
            )
    if "cached" in specs:
        from .peers import check_rule

        rest = {k: v for k, v in specs["cached"]["settings"].items() if k != "block_size"}
        check_rule(read_rule(rest))


def run_rounds(
    specs: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any], content: dict[str, Any]
) -> None:
    """Runs what is missing in `content` ({rounds, outside, texts}) and saves it as it grows."""
    num_rounds = 1 if given["quick"] else given["rounds"]
    for threads in given["threads"]:
        done = sum(item["threads"] == threads for item in content["rounds"])
        extra = threads == given["threads"][0] and given["judge"] is not None
        wanted = {
            name: range(len(content["texts"].get(name, ())), given["texts"] if extra else 0)
            for name in specs
        }
        if done >= num_rounds and not any(map(len, wanted.values())):
            continue
        contestants = [Contestant({**spec, "threads": threads}) for spec in specs.values()]
        try:
            for item in contestants:
                content["warm_up_seconds"][f"{item.name}/{threads}"] = item.wait()
            for number in range(done, num_rounds):
                turn = number % len(contestants)
                order = [*contestants[turn:], *contestants[:turn]]
                results = {item.name: item.decode(1 + number) for item in order}
                results = {name: results[name] for name in specs}
                content["rounds"].append({"threads": threads, "results": results})
                _measure_aside(contestants, threads, number, content)
                write_json(given["out"], content)
            for item in contestants:
                for sample in wanted[item.name]:
                    text = item.decode(1 + num_rounds + sample)["text"]
                    content["texts"].setdefault(item.name, []).append(text)
                write_json(given["out"], content)
        finally:
            for item in contestants:
                item.close()


def _measure_aside(
    contestants: Sequence[Contestant], threads: int, number: int, content: dict[str, Any]
) -> None:
    """Notes ours' share of time outside `engine.run`, greedy and at temperature 1.

    In the first round it also notes how many greedy tokens are those of `cached`: the two decode
    the same model by the same rule, so that anything but nearly all means a fault in one of them.
    """
    by_name = {item.name: item for item in contestants}
    if "ours" not in by_name:
        return
    for temperature in OUTSIDE_TEMPERATURES:
        result = by_name["ours"].decode(1 + number, temperature=temperature)
        key = f"threads {threads}, temperature {temperature:g}"
        content["outside_engine"].setdefault(key, []).append(result["outside"])
        if number == 0 and temperature == 0 and "cached" in by_name:
            peer = by_name["cached"].decode(1 + number, temperature=temperature)
            share = agreement(result["token_ids"], peer["token_ids"])
            content["greedy_agreement"][f"threads {threads}"] = share


def resume(out: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of an interrupted run; an empty one if there is none."""
    if out.exists():
        try:
            found = json.loads(out.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{out}: wanted JSON of this script ({error}); remove it") from error
        if not found.get("complete", False):
            if found.get("key") == key:
                return found
            raise ConfigError(f"{out} is of an interrupted run with other settings; remove it")
    empty = {
        "rounds": [],
        "texts": {},
        "outside_engine": {},
        "greedy_agreement": {},
        "warm_up_seconds": {},
    }
    return record() | {"key": key} | empty


@click.command("decode", cls=DlmCommand)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--causal", type=click.Path(path_type=Path), help="Bundle of the causal baseline.")
@click.option("--int8", type=click.Path(path_type=Path), help="BUNDLE's model in int8.")
@click.option("--causal-int8", type=click.Path(path_type=Path), help="The causal baseline in int8.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Folder that the PyTorch peers load.  [default: the weights are read out of BUNDLE]",
)
@click.option(
    "--whole-checkpoint",
    type=click.Path(path_type=Path),
    help="For eager and compiled, if the model has learnt no whole canvas.",
)
@click.option(
    "--contestant",
    "contestants",
    multiple=True,
    type=click.Choice(tuple(CONTESTANTS)),
    help="Only these; may be repeated.",
)
@click.option("--tokens", default=256, help="New tokens, or what fits.")
@click.option("--plain-steps", default=128, help="Steps of eager and compiled.")
@click.option("--rounds", default=7, help="Rounds per thread count.")
@click.option("--threads", type=int, multiple=True, default=(1, 2))
@click.option("--quick", is_flag=True, help="One round: does everything run?")
@click.option("--rule", help="Of ours and cached.  [default: the bundle's, as all that follow]")
@click.option("--threshold", type=float)
@click.option("--factor", type=float)
@click.option("--entropy-bound", type=float)
@click.option("--steps", type=int)
@click.option("--temperature", type=float, help="Of all contestants.")
@click.option("--top-p", type=float, help="Of all contestants.")
@click.option("--block", type=int, help="Block of ours and cached.  [default: the bundle's]")
@click.option("--seed", default=0)
@click.option(
    "--judge", type=click.Path(path_type=Path), help="A bundle that reads the texts: adds quality."
)
@click.option("--texts", default=50, help="Texts per contestant to judge.")
@click.option("--words", default=100, help="Words that they are cut to.")
@out_option("decode", help="JSON of all rounds; a run that was interrupted goes on from it.")
def main(**given: Any) -> None:
    """Times BUNDLE (default: the model that ships) against PyTorch and the causal baseline.

    Contestants: (a) eager: PyTorch on the whole canvas, fixed low-confidence schedule of
    --plain-steps; (b) compiled: the same under torch.compile; (c) cached: PyTorch with the block
    KV cache and the rule of ours; (d) ours; (e) causal: the causal baseline on our engine (needs
    --causal); (d) and (e) in int8 with --int8 and --causal-int8. Quality needs --judge and a
    temperature above 0. Run it on a machine that does nothing else: the load before the run stands
    in the JSON.
    """
    specs = make_specs(given)
    if given["judge"] and next(iter(specs.values()))["settings"].get("temperature") == 0:
        raise ConfigError(
            "at temperature 0 all texts are one: give --temperature, or leave --judge out"
        )
    paths = ("bundle", "checkpoint", "tokenizer")
    key = {
        name: {k: v for k, v in spec.items() if k not in paths} for name, spec in specs.items()
    } | {"threads": list(given["threads"])}
    content = resume(given["out"], key)
    try:
        run_rounds(specs, given, content)
    except ChildProcessError as error:
        raise DlmError(str(error)) from error
    report(content, given)
    content["complete"] = True
    write_json(given["out"], content)


if __name__ == "__main__":
    main()
