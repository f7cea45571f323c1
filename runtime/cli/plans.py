"""What `dlm-run` does with TensorRT plans: builds, lists and removes them. Torch-free."""

from __future__ import annotations

from typing import Any

import click

from ..bundle.bundle import default_bundle_path, open_bundle
from ..engines.plan_cache import PlanCache
from ..engines.tensorrt_build import BuildSettings, import_tensorrt
from ..engines.tensorrt_plans import Plan, build_plans
from ..errors import brief
from ..gpu.facts import read_gpu
from .common import note, print_json
from .options import RunOptions
from .progress import ProgressLine

_NAME = "dlm-run"
_MIB = 1 << 20


def run(options: RunOptions) -> None:
    """Does what was asked of plans."""
    {"build": build, "rebuild": build, "plans": show, "clear_plans": clear}[options.task](options)


def build(options: RunOptions) -> None:
    """Builds the plans of every graph of a bundle, or says that they are there.

    Raises:
        EngineError: There is no TensorRT, or it refuses a graph.
        DeviceError: There is no GPU.
    """
    trt = import_tensorrt()
    gpu = read_gpu()
    path = default_bundle_path() if options.bundle is None else options.bundle
    bundle = open_bundle(path, expect_sha256=options.expect_sha256)
    cache = PlanCache(lambda line: note(_NAME, line))
    settings = BuildSettings(weakly_typed=options.weak_types)
    line = ProgressLine()
    plans = build_plans(
        trt,
        bundle,
        gpu,
        cache,
        settings,
        rebuild=options.task == "rebuild",
        report=line.show_share,
    )
    try:
        for plan in plans:
            line.wipe()
            _print_plan(plan, plan.key.file, options)
    finally:
        line.wipe()


def _print_plan(plan: Plan, file: str, options: RunOptions) -> None:
    facts: dict[str, Any] = {
        "file": file,
        "mib": round(plan.data.nbytes / _MIB, 2),
        "built": plan.facts is not None,
        "gpu": plan.key.gpu_name,
        "backend": plan.key.backend_version,
        **(plan.facts or {}),
    }
    warnings = facts.pop("warnings", [])
    if options.verbose:
        for warning in warnings:
            note(_NAME, brief(warning, 300))
    if plan.surplus is not None:
        note(_NAME, plan.surplus)
    if options.as_json:
        print_json(facts)
        return
    how = "in the cache"
    if plan.facts is not None:
        how = (
            f"built in {plan.facts['seconds']:.1f} s, memory up to "
            f"{plan.facts['peak_rss_mib']:.0f} MiB"
        )
    click.echo(
        f"{file}  {facts['mib']:.1f} MiB  {len(plan.specs)} shapes  {how}  "
        f"({facts['backend']}, {facts['gpu']})"
    )


def show(options: RunOptions) -> None:
    """Lists the cached plans of a bundle, or all."""
    cache = PlanCache()
    wanted = _bundle_sha256(options)
    rows = []
    for entry in cache.entries():
        header = entry.header or {}
        key = header.get("key", {})
        if wanted is None or key.get("bundle_sha256") == wanted:
            rows.append(
                {
                    "plan": entry.path.name,
                    "mib": round(entry.bytes / _MIB, 2),
                    "bundle": header.get("facts", {}).get("bundle"),
                    "bundle_sha256": key.get("bundle_sha256"),
                    "gpu": key.get("gpu_name"),
                    "backend": key.get("backend_version"),
                    "precision": key.get("precision"),
                    "built": header.get("built"),
                }
            )
    if options.as_json:
        print_json({"folder": str(cache.folder), "plans": rows})
        return
    for row in rows:
        if row["bundle_sha256"] is None:
            click.echo(f"{row['plan']}  {row['mib']:.1f} MiB  damaged")
            continue
        click.echo(
            f"{row['plan']}  {row['mib']:.1f} MiB  {row['bundle']} ({row['bundle_sha256'][:12]})  "
            f"{row['precision']}  {row['backend']}, {row['gpu']}  {row['built']}"
        )
    click.echo(f"{len(rows)} plans in {cache.folder}", err=True)


def clear(options: RunOptions) -> None:
    """Removes the cached plans of a bundle, or all."""
    number, size = PlanCache().clear(_bundle_sha256(options))
    if options.as_json:
        print_json({"removed": number, "bytes": size})
    else:
        click.echo(f"removed {number} plans, {size / _MIB:.1f} MiB", err=True)


def _bundle_sha256(options: RunOptions) -> str | None:
    if options.bundle is None:
        return None
    return open_bundle(options.bundle, expect_sha256=options.expect_sha256).sha256
