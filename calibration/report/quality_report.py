"""What calibration measured, as plain data for report.json, and in words.

The page that people read is drawn from the same data by `calibration/report/page.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import REPORT_NAME
from ...runtime.families.table import find_family
from ...runtime.files import write_whole, writing
from ...runtime.measure.evaluate import LIKELIHOOD
from ..canvases.texts import Texts
from ..losses.budget import WORDS, fits
from ..losses.loss import Ratio
from ..losses.quality import VariantFigures
from ..options import SETS, QuantisationOptions, Quantised
from ..recipe import Recipe
from .page import lost

PAGE_NAME = "report.html"
RECIPE_NAME = "recipe.json"
QUALITY_VERSION = 3
ENOUGH_TOP1 = 0.98
"""Share of equal tokens at positions about to be committed, below which the report warns."""
MOST_FP16_LOSS = 0.001
"""Share of perplexity that rounding to float16 may cost before the report warns."""


def quality_report(
    quantised: Quantised, options: QuantisationOptions, texts: Texts, family: str
) -> dict[str, Any]:
    """Returns the figures as JSON data."""
    return {
        "version": QUALITY_VERSION,
        "family": family,
        "precision": options.precision,
        "target": options.target,
        "verdict": _verdict(quantised, options),
        "findings": [*_about_figure(family), *_findings(quantised, options)],
        "warnings": _warnings(quantised, options),
        "text": {
            "source": texts.source,
            "num_tokens": quantised.texts[0].num_tokens,
            "block": quantised.texts[0].block,
            "noise": _noise(quantised),
            "blocks": [text.block for text in quantised.texts],
            "num_samples": quantised.num_samples,
            "num_decodes": quantised.num_decodes,
            "seed": options.seed,
        },
        "variants": {name: asdict(item) for name, item in quantised.variants.items()},
        "comparison": {name: asdict(item) for name, item in quantised.comparison.items()},
        "calibrated_on": quantised.calibrated_on,
        "against_decoding": {
            name: asdict(ratio) for name, ratio in quantised.against_decoding.items()
        },
        "sensitivity": [asdict(cost) for cost in quantised.costs],
        "tables": [asdict(trial) for trial in quantised.tables],
        "budget": {
            "max_loss": options.max_loss,
            "met": quantised.outcome.met,
            "worst": asdict(quantised.outcome.ratio),
            "given_up": quantised.outcome.given_up,
            "instead": quantised.outcome.instead,
            "trials": [asdict(trial) for trial in quantised.outcome.trials],
        },
        "ranges": _ranges(quantised),
        "canvases": _canvases(quantised),
        "recipe": quantised.recipe.to_json(),
    }


def _noise(quantised: Quantised) -> str:
    """Says what distinguishes canvases: what is masked or, without masks, the noise's level."""
    return "mask ratio" if quantised.masked else "noise level"


def _loss(ratio: Ratio) -> str:
    if ratio.low == ratio.high:  # an exact likelihood: nothing is drawn
        return f"{lost(ratio.value)} %"
    return f"{lost(ratio.value)} % ({lost(ratio.low)} to {lost(ratio.high)} with 95 %)"


def _verdict(quantised: Quantised, options: QuantisationOptions) -> str:
    """Says in a sentence what a reader wants to know first."""
    ratio = quantised.outcome.ratio
    kept = "keeps within" if fits(ratio, options.max_loss) else "is beyond"
    share = quantised.variants[options.precision].num_bytes / quantised.variants["fp32"].num_bytes
    return (
        f"{options.precision} {kept} the budget of {100 * options.max_loss:g} %: perplexity "
        f"changes by {lost(ratio.value)} %, by {lost(ratio.high)} % at most, at "
        f"{share:.2f} of fp32's size."
    )


def _about_figure(family: str) -> list[str]:
    """Says what is measured where there is no likelihood."""
    figure = find_family(family).figure
    if figure == LIKELIHOOD:
        return []
    return [
        f"A model of family {family} has no likelihood: perplexity is exp of the {figure} here."
    ]


def _findings(quantised: Quantised, options: QuantisationOptions) -> list[str]:
    whole = quantised.variants["fp32"]
    found = []
    for name, item in quantised.variants.items():
        if name != "fp32":
            found.append(
                f"{name} changes perplexity by {_loss(item.ratio)}{item.ratio.place} and takes "
                f"{item.num_bytes / whole.num_bytes:.2f} of fp32's bytes."
            )
    others = [item["ratio"] for item in quantised.variants[options.precision].by_block.values()][1:]
    if others:
        parts = [f"{_loss(ratio)}{ratio.place}" for ratio in others]
        found.append(
            f"{options.precision} at the other block sizes that texts are decoded or filled by: "
            f"{'; '.join(parts)}. The budget is for the worst of all."
        )
    found += _pace(quantised.variants[options.precision])
    found += _stored(quantised)
    kept = [
        f"{name} of {graph}"
        for graph, recipe in quantised.recipe.graphs.items()
        for name in recipe.float32
    ]
    if kept:
        found.append(
            f"{len(kept)} values leave float16's range on the canvases and stay in float32: "
            f"{', '.join(kept[:8])}{', …' if len(kept) > 8 else ''}."
        )
    if apart := [layer.outliers for _, _, layer in quantised.recipe.layers() if layer.outliers]:
        found.append(
            f"{len(apart)} layers keep their {min(map(len, apart))} to {max(map(len, apart))} "
            "largest input channels in floating point."
        )
    if quantised.comparison:
        found += _compared(quantised, options.precision)
    if options.edits is None:
        found += _given_up(quantised.recipe, options.max_loss)
    return found


def _given_up(recipe: Recipe, max_loss: float) -> list[str]:
    """Says what the budget made of layers: of an int4 recipe some may be int8 and some float."""
    found = [layer.precision for _, _, layer in recipe.layers() if layer.reason == "budget"]
    return [
        f"{found.count(precision)} layers are {words} to keep within {100 * max_loss:g} %."
        for precision, words in WORDS.items()
        if precision in found
    ]


def _pace(variant: VariantFigures) -> list[str]:
    """Says how many tokens a graph run makes, where models differ in that."""
    own = variant.trajectory["tokens_per_nfe"]
    whole = variant.trajectory["tokens_per_nfe_of_fp32"]
    if max(own, whole) <= 1.0:  # nothing drafts, or nothing came of it
        return []
    return [
        f"{variant.name} makes {own:.2f} tokens per graph run where fp32 makes {whole:.2f}, on the "
        f"same prompts ({100 * (own / whole - 1):+.1f} %)."
    ]


def _stored(quantised: Quantised) -> list[str]:
    """Says what storing embeddings and heads as int8 was measured to cost."""
    return [
        f"{trial.layer} of {trial.graph} alone as {trial.precision}: {_loss(trial.ratio)}, "
        f"{'harmless' if trial.harmless else 'not harmless, so it is not stored like that'}."
        for trial in quantised.tables
    ]


def _compared(quantised: Quantised, precision: str) -> list[str]:
    """Says what calibrating on something else would have given."""
    parts = [
        f"from {SETS[name]} {_loss(item.ratio)}" for name, item in quantised.comparison.items()
    ]
    lines = [f"The same {precision}, before any budget, calibrated {'; '.join(parts)}."]
    parts = [f"{SETS[name]}: {_loss(item)}" for name, item in quantised.against_decoding.items()]
    if parts:
        lines.append(
            f"Against {SETS['decode']}, in pairs, perplexity changes with {'; '.join(parts)}."
        )
    if quantised.calibrated_on == "clean":
        lines.append(
            "Clean text does as well as canvases of the decoding loop on this model, so the "
            "simpler one was used."
        )
    elif "clean" in quantised.comparison:
        measurable = quantised.against_decoding["clean"].low > 1.0
        worse = "measurably worse" if measurable else "worse at tokens about to be committed"
        lines.append(
            f"Clean text does {worse} than canvases of the decoding loop, so these were used."
        )
    lines += [
        f"Calibration on {SETS[name]} gave no scales: {why}."
        for name, why in quantised.failures.items()
    ]
    return lines


def _warnings(quantised: Quantised, options: QuantisationOptions) -> list[str]:
    found = []
    if not fits(quantised.outcome.ratio, options.max_loss):
        found.append(
            f"Beyond its budget of {100 * options.max_loss:g} %: written because of --force."
        )
    half = quantised.variants["fp16"].worst
    if half.loss > MOST_FP16_LOSS:
        found.append(
            f"fp16 alone loses {100 * half.loss:.3f} % of perplexity{half.place}, more than "
            f"{100 * MOST_FP16_LOSS:g} %."
        )
    item = quantised.variants[options.precision]
    soon = item.agreement["about_to_be_committed"]
    if soon["rows"] and soon["top1"] < ENOUGH_TOP1:
        found.append(
            f"Only {100 * soon['top1']:.1f} % of the tokens about to be committed are fp32's, of "
            f"{soon['rows']} rows: fewer than {100 * ENOUGH_TOP1:g} %."
        )
    return found


def _ranges(quantised: Quantised) -> dict[str, Any]:
    return {
        graph: {
            name: {
                "largest": {f"{decile / 10:.1f}": value for decile, value in deciles.items()},
                **quantised.recipe.to_json()["graphs"][graph]["layers"][name],
            }
            for name, deciles in layers.items()
        }
        for graph, layers in quantised.largest.items()
        if layers  # a look-up has none
    }


def _canvases(quantised: Quantised) -> dict[str, Any]:
    name = quantised.calibrated_on or "decode"
    chosen = quantised.sets[name]
    rows = [
        {
            "graph": graph,
            "dims": dict(dims),
            "decile": decile,
            "count": sum(sources.values()),
        }
        for ((graph, dims), decile), sources in chosen.coverage().items()
    ]
    words = (
        f"{len(chosen)} graph inputs from {SETS[name]}, by graph shape and tenth of the "
        f"{_noise(quantised)}."
    )
    return {"words": words, "recipe": dict(chosen.recipe), "coverage": rows}


def write_reports(folder: Path, report: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
    """Writes report.json, report.html and recipe.json; DlmError if that fails."""
    files = {REPORT_NAME: (json.dumps(report, indent=1) + "\n").encode(), **members}
    with writing(f"the report into {folder}", "choose another --report-dir"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_whole(folder / name, data)
