"""`dlm-models`: a shelf of public models, by short names.

`list`, `show` and `remove` need neither PyTorch nor a network; `pull` downloads a checkpoint by the
Hugging Face hub's client, with its cache, its token and its offline mode, and exports it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from ..jetson.forecast.shapes import WEIGHT_BYTES, ShapeForecast, forecast_shape
from ..jetson.targets import target as find_target
from ..runtime.cli.common import DlmCommand, common_options, print_json
from ..runtime.errors import BundleError, CheckpointError, ConfigError
from ..runtime.models.shelf import SHELF, PublicModel, find_model, forbids_commerce, shelf_path

BOARD = "orin-nano"
MODES = ("15w", "25w", "maxn-super")
SPARE = 1.1
"""Space that a pull needs, as a multiple of the download and the bundle."""


@click.group("dlm-models")
def main() -> None:
    """Public models by short names: what they need, and how to get them.

    What is pulled runs by its name: dlm-run NAME, dlm-serve NAME.
    """


def _target_options(function: Any) -> Any:
    for option in (
        click.option("--target", default=BOARD, show_default=True, help="Where it will run."),
        click.option("--power-mode", "mode", help="Of a board. Default: the one it boots in."),
        click.option(
            "--precision",
            type=click.Choice(list(WEIGHT_BYTES)),
            default="int8",
            show_default=True,
            help="Of the bundle.",
        ),
    ):
        function = option(function)
    return function


@main.command("list", cls=DlmCommand)
@_target_options
@common_options
def list_models(target: str, mode: str | None, precision: str, as_json: bool, **_: Any) -> None:
    """Lists the models, and what each would need and do on a target: predicted, nothing measured.

    tokens/s are those of a board at a published number of tokens per run; "-" where there is none.
    """
    place = find_target(target)
    rows = [
        {"name": name, **_summary(name, forecast_shape(model, place, precision, place.mode(mode)))}
        for name, model in SHELF.items()
    ]
    if as_json:
        print_json({"target": target, "predicted": True, "models": rows})
        return
    click.echo(
        f"{'name':22} {'M':>5} {'block':>6} {'MiB':>6} {'on ' + target:14} {'ms/run':>7} "
        f"{'tok/s':>6}  licence"
    )
    for row in rows:
        here = "  (here)" if row["pulled"] else "" if row["read"] else "  (not read yet)"
        click.echo(
            f"{row['name']:22} {row['million_parameters']:5.0f} {row['block']:>6} "
            f"{row['memory_mib']:6.0f} {row['verdict']:14} {_number(row['run_ms']):>7} "
            f"{_number(row['tokens_per_s']):>6}  {row['licence'] or 'not named'}{here}"
        )
    click.echo("predicted from the models' sizes; dlm-models show NAME has the parts", err=True)


def _summary(name: str, forecast: ShapeForecast) -> dict[str, Any]:
    model, blocks = SHELF[name], {None: "causal", 0: "whole"}
    return {
        "hub": model.hub,
        "million_parameters": model.shape.parameters / 1e6,
        "block": blocks.get(model.block, str(model.block)),
        "licence": model.licence,
        "memory_mib": forecast.memory.total,
        "verdict": forecast.verdict,
        "read": not model.missing,
        "run_ms": forecast.run_ms,
        "tokens_per_run": 1.0 if model.block is None else model.tokens_per_run,
        "tokens_per_s": forecast.tokens_per_s,
        "pulled": shelf_path(name).is_file(),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


@main.command("show", cls=DlmCommand)
@click.argument("name")
@_target_options
@common_options
def show_model(
    name: str, target: str, mode: str | None, precision: str, as_json: bool, **_: Any
) -> None:
    """Shows where a model comes from, its licence, and what it would need here and on a board."""
    model = find_model(name)
    place = find_target(target)
    here = forecast_shape(model, find_target("host"), precision, None)
    board = [
        forecast_shape(model, place, kind, mode_)
        for mode_ in ([place.mode(mode)] if mode or not place.modes else _modes(place))
        for kind in dict.fromkeys((precision, "int4"))
    ]
    facts = {
        "name": name,
        "hub": model.hub,
        "revision": model.revision,
        "licence": model.licence,
        "forbids_commerce": forbids_commerce(model.licence),
        "million_parameters": model.shape.parameters / 1e6,
        "download_mib": _download_bytes(model) / 2**20,
        "block": model.block,
        "tokenizer": model.tokenizer,
        "tokens_per_run": model.tokens_per_run,
        "tokens_per_run_source": model.source,
        "missing": model.missing,
        "bundle": str(shelf_path(name)) if shelf_path(name).is_file() else None,
    }
    if as_json:
        print_json(
            {**facts, "here": _forecast_json(here), target: [_forecast_json(f) for f in board]}
        )
        return
    for key, value in facts.items():
        if value not in (None, "", False):
            click.echo(f"{key.replace('_', ' ')}: {_plain(value)}")
    click.echo(f"here, {precision}: {_memory_line(here)}")
    for forecast in board:
        click.echo(f"{target} {forecast.mode}, {forecast.precision}: {_memory_line(forecast)}")


def _modes(place: Any) -> list[Any]:
    return [place.modes[name] for name in MODES if name in place.modes] or [place.mode()]


def _plain(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, float) and value > 10 else str(value)


def _memory_line(forecast: ShapeForecast) -> str:
    parts = " + ".join(f"{name} {mib:,.0f}" for name, mib in forecast.memory.parts.items() if mib)
    speed = "" if forecast.run_ms is None else f"; {forecast.run_ms:.1f} ms per run"
    if forecast.tokens_per_s is not None:
        speed += f", {forecast.tokens_per_s:.0f} tokens/s"
    return (
        f"{forecast.verdict}: {parts} = {forecast.memory.total:,.0f} MiB of "
        f"{_number(forecast.memory.available)}{speed} (predicted)"
    )


def _forecast_json(forecast: ShapeForecast) -> dict[str, Any]:
    return {
        "precision": forecast.precision,
        "mode": forecast.mode,
        "verdict": forecast.verdict,
        "memory_mib": forecast.memory.to_json(),
        "run_ms": forecast.run_ms,
        "tokens_per_s": forecast.tokens_per_s,
    }


def _download_bytes(model: PublicModel) -> float:
    return float(model.shape.parameters * model.download_bytes)


@main.command("pull", cls=DlmCommand)
@click.argument("name")
@click.option("--target", default="cpu", show_default=True, help="Where it will run.")
@click.option(
    "--precision",
    type=click.Choice(list(WEIGHT_BYTES)),
    default="int8",
    show_default=True,
    help="Of the bundle; int8 and int4 round weights without a text, and measure no loss.",
)
@click.option(
    "--context", type=click.IntRange(1), help="Positions of the context. Default: the shelf's."
)
@common_options
def pull(
    name: str, target: str, precision: str, context: int | None, as_json: bool, **_: Any
) -> None:
    """Downloads a model and exports it; then dlm-run NAME runs it.

    The hub's client goes on after a broken connection and keeps whole files for the next try;
    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they always do.
    """
    model = find_model(name)
    if model.missing:
        raise CheckpointError(
            f"{name} cannot be read yet: {model.missing} are missing in this version"
        )
    if context is not None and model.block == 0:
        raise ConfigError(
            f"{name} denoises the whole canvas of {model.canvas} positions: leave --context out"
        )
    output = shelf_path(name)
    output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_space(model, precision, output.parent)
    if model.licence:
        forbids = ", which forbids commercial use" if forbids_commerce(model.licence) else ""
        click.echo(f"licence of the weights: {model.licence}{forbids}", err=True)
    from .pack import export_checkpoint
    from .settings import ExportSettings

    settings = ExportSettings(
        target=target,
        precision=precision,
        uncalibrated=precision in ("int8", "int4"),
        blocks=("full",) if model.block == 0 else (),
        contexts=() if model.block == 0 else (context or model.canvas,),
        tokenizer=model.tokenizer,
        choose_decoding=model.block is None,
    )
    revision = "" if model.revision == "main" else f"@{model.revision}"
    where = Path(f"hf:{model.hub}{revision}")
    report = export_checkpoint(where, output, settings, lambda line: click.echo(line, err=True))
    if as_json:
        print_json({"name": name, "bundle": report["bundle"], "sha256": report["sha256"]})
    else:
        click.echo(f"{name}: {report['bundle']}; dlm-run {name} runs it")


def _check_space(model: PublicModel, precision: str, folder: Path) -> None:
    """Raises BundleError where the download or the bundle would not fit on the disk."""
    needed = SPARE * (_download_bytes(model) + 2 * model.shape.parameters * WEIGHT_BYTES[precision])
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            f"{model.hub} needs {needed / 2**30:.1f} GiB for the download and the bundle, and "
            f"{free / 2**30:.1f} are free in {folder}: free some, or set HF_HOME and "
            "XDG_CACHE_HOME to another disk"
        )


@main.command("remove", cls=DlmCommand)
@click.argument("name")
@click.option("--download/--keep-download", default=False, help="Remove what was downloaded, too.")
@common_options
def remove(name: str, download: bool, as_json: bool, **_: Any) -> None:
    """Removes a pulled model's bundle, and its download where that is asked for."""
    model, place = find_model(name), shelf_path(name)
    freed = 0
    if place.is_file():
        freed += place.stat().st_size
        place.unlink()
    elif not download:
        raise BundleError(f"{name} is not here: nothing to remove")
    if download:
        freed += _remove_download(model.hub)
    if as_json:
        print_json({"name": name, "freed_bytes": freed})
    else:
        click.echo(f"{name}: {freed / 2**20:,.0f} MiB freed")


def _remove_download(hub: str) -> int:
    """Removes a repository from the hub client's cache; returns the bytes."""
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError as error:
        raise ConfigError("--download needs the package huggingface_hub") from error
    try:
        found = [repo for repo in scan_cache_dir().repos if repo.repo_id == hub]
    except CacheNotFound:
        return 0
    freed = 0
    for repo in found:
        freed += repo.size_on_disk
        shutil.rmtree(repo.repo_path)
    return freed


if __name__ == "__main__":
    main()
