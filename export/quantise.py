"""The way from float32 graphs to what ships: canvases, scales, budget, and the report of it all.

The order is that of the dependencies: the float32 graphs decode the calibration prompts; values
beyond float16 are found; each set of canvases gives scales, and the simplest set that does as well
as the others is kept; layers that cost too much go back to floating point; every variant is
measured. Knows no family and no file format: graphs come in and go out as models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..calibration.bench import Workbench
from ..calibration.budget import fit_budget, single_trial
from ..calibration.calibrate import Calibrator, Fitted
from ..calibration.canvases import CanvasSet
from ..calibration.extremes import beyond_float16, largest_values
from ..calibration.loss import LossText, Ratio, default_block
from ..calibration.plan import Plan, apply_edits
from ..calibration.quality import Examiner, Figures
from ..calibration.record import (
    CanvasSettings,
    clean_canvases,
    noise_canvases,
    record_canvases,
)
from ..calibration.sensitivity import LayerCost, all_float, layer_costs
from ..runtime.bundle import Bundle
from ..runtime.engines.base import EngineSet
from ..runtime.errors import CalibrationError
from ..runtime.evaluate import windows_of
from ..runtime.manifest import Manifest, Member
from ..runtime.tokenizer import Tokenizer
from .bars import bar
from .recipes import recipe_for
from .texts import Texts
from .wishes import SETS, Models, Shipped, Wishes

NUM_SAMPLES = 8
"""Masks per window of held-out text: four antithetic pairs."""
SENSITIVITY_SHARE = 0.25
"""Of the held-out text: each layer is measured on it."""
NUM_DECODES = 12
PROMPT_TOKENS = 8
CALIBRATION = CanvasSettings()
HELD_OUT = CanvasSettings(per_stratum=2, num_decodes=4, num_windows=4)


class Quantiser:
    """One model on its way to one target."""

    def __init__(
        self,
        models: Models,
        manifest: Manifest,
        tokenizer: Tokenizer,
        texts: Texts,
        wishes: Wishes,
        say: Callable[[str], None],
    ) -> None:
        """Takes float32 graphs by name, and the draft manifest that has their shapes."""
        members = {spec.file: _member(models[spec.name]) for spec in manifest.graphs}
        self._manifest = replace(manifest, precision="fp32", members=members)
        self._models, self._tokenizer, self._texts = models, tokenizer, texts
        self._wishes, self._say = wishes, say
        self._bench = Workbench(self._manifest)
        roles = {
            spec.name: {tensor.name: tensor.role for tensor in spec.inputs}
            for spec in manifest.graphs
        }
        self._calibrator = Calibrator(models, roles, recipe_for(wishes.target))

    def run(self) -> Shipped:
        """Does it all.

        Raises:
            CalibrationError: The text, the plan or the budget cannot be used or met.
        """
        wishes = self._wishes
        with self._engines(self._models, "fp32") as whole:
            stream = self._texts.stream(wishes.num_tokens)
            windows = windows_of(self._manifest, whole, stream)
            text = LossText(windows=windows, num_samples=NUM_SAMPLES, seed=wishes.seed)
            sets = self._record(whole)
            plan = self._draft_plan(sets["decode"])
            examiner = self._examiner(whole, text, sets.pop("held out"))
            variants = {
                "fp32": examiner.examine("fp32", "fp32", self._models, whole, examiner.totals)
            }
            fp16 = self._calibrator.build_fp16(plan)
            variants["fp16"] = self._examine(examiner, "fp16", "fp16", fp16)
            common = {
                "sets": sets,
                "text": text,
                "block": default_block(self._manifest),
                "num_samples": len(examiner.totals),
                "num_decodes": len(self._texts.held_out[:NUM_DECODES]),
            }
            if wishes.precision == "fp16":
                plan = all_float(plan)
                outcome = single_trial(plan, variants["fp16"].ratio, wishes.max_loss)
                outcome.require(wishes.max_loss, outcome.num_float, force=wishes.force)
                return Shipped(
                    models=fp16, plan=plan, outcome=outcome, variants=variants, comparison={},
                    against_decoding={}, failures={}, calibrated_on="", costs=(), largest={},
                    **common,
                )  # fmt: skip
            return self._int8(whole, plan, examiner, variants, common)

    def _int8(
        self,
        whole: EngineSet,
        plan: Plan,
        examiner: Examiner,
        variants: dict[str, Figures],
        common: dict[str, Any],
    ) -> Shipped:
        wishes = self._wishes
        fitted, comparison, totals, failures = self._compare(plan, examiner, common["sets"])
        gains = {
            name: examiner.ratio(found, totals["decode"])
            for name, found in totals.items()
            if name != "decode"
        }
        chosen = choose(comparison, gains)
        best = fitted[chosen]

        def measure(candidate: Plan) -> Ratio:
            if candidate == best.plan:
                return comparison[chosen].ratio
            self._say("measuring a plan as a whole")
            return examiner.ratio(
                self._totals(self._calibrator.build(best, candidate), common["text"])
            )

        costs = self._sensitivity(whole, best, common["text"])
        if wishes.edits is not None:
            outcome = single_trial(best.plan, measure(best.plan), wishes.max_loss)
        else:
            outcome = fit_budget(best.plan, costs, measure, wishes.max_loss)
        outcome.require(wishes.max_loss, len(list(best.plan.layers())), force=wishes.force)
        outcome.require_int8(wishes.max_loss, force=wishes.force)
        models = self._calibrator.build(best, outcome.plan)
        variants["int8"] = (
            replace(comparison[chosen], name="int8", title="int8, as shipped")
            if outcome.plan == best.plan
            else self._examine(examiner, "int8", "int8, as shipped", models)
        )
        return Shipped(
            models=models, plan=outcome.plan, outcome=outcome, variants=variants,
            comparison=comparison if wishes.edits is None else {},
            against_decoding=gains, failures=failures,
            calibrated_on=chosen, costs=costs,
            largest=self._largest(best, common["sets"]["decode"]), **common,
        )  # fmt: skip

    def _compare(
        self, plan: Plan, examiner: Examiner, sets: Mapping[str, CanvasSet]
    ) -> tuple[dict[str, Fitted], dict[str, Figures], dict[str, np.ndarray], dict[str, str]]:
        """Calibrates on each set and measures the result; a set that fails is left out."""
        fitted, comparison, totals, failures = {}, {}, {}, {}
        for name, canvases in sets.items():
            self._say(f"calibrating on {SETS[name]}")
            try:
                with bar() as show:
                    found = self._calibrator.fit(plan, canvases, show)
            except CalibrationError as error:
                if name == "decode":
                    raise
                failures[name] = str(error)
                continue
            models = self._calibrator.build(found, found.plan)
            fitted[name] = found
            with self._engines(models, "int8") as engines:
                with bar() as show:
                    totals[name] = examiner.measure(engines, show)
                comparison[name] = examiner.examine(
                    name, f"int8, calibrated on {SETS[name]}", models, engines, totals[name]
                )
        return fitted, comparison, totals, failures

    def _largest(self, best: Fitted, canvases: CanvasSet) -> dict[str, dict[str, dict[int, float]]]:
        """What decoding really sends into each layer, whatever its scales were chosen on."""
        self._say("measuring ranges by mask ratio")
        with bar() as show:
            return self._calibrator.largest(best, canvases, show)

    def _sensitivity(self, whole: EngineSet, best: Fitted, text: LossText) -> tuple[LayerCost, ...]:
        self._say("measuring each layer alone")
        short = text.shortened(int(text.num_tokens * SENSITIVITY_SHARE))
        reference = short.totals(self._manifest, whole)

        def measure(plan: Plan) -> Ratio:
            found = self._totals(self._calibrator.build(best, plan), short, quiet=True)
            return short.ratio(found, reference)

        with bar() as show:
            return layer_costs(best.plan, measure, show)

    def _totals(self, models: Models, text: LossText, *, quiet: bool = False) -> np.ndarray:
        with self._engines(models, "int8") as engines, bar(quiet=quiet) as show:
            return text.totals(self._manifest, engines, show)

    def _examine(self, examiner: Examiner, name: str, title: str, models: Models) -> Figures:
        self._say(f"measuring {title}")
        with self._engines(models, name) as engines, bar() as show:
            return examiner.examine(name, title, models, engines, examiner.measure(engines, show))

    def _examiner(self, whole: EngineSet, text: LossText, held_out: CanvasSet) -> Examiner:
        self._say("measuring fp32")
        with bar() as show:
            return Examiner(
                self._manifest,
                whole,
                text=text,
                canvases=held_out.items,
                prompts=[ids[:PROMPT_TOKENS] for ids in self._texts.held_out[:NUM_DECODES]],
                tokenizer=self._tokenizer,
                judge=self._wishes.judge,
                seed=self._wishes.seed,
                progress=show,
            )

    def _draft_plan(self, canvases: CanvasSet) -> Plan:
        """The recipe's plan with the values that float16 cannot hold, and the caller's edits."""
        recipe = self._calibrator.recipe
        float32 = {}
        for graph, model in self._models.items():
            names = recipe.half_values(model)
            own = [item for item in canvases.items if item.graph == graph]
            if names:
                self._say(f"looking for values of {graph} beyond float16")
                with bar() as show:
                    float32[graph] = beyond_float16(largest_values(model, own, names, show))
        plan = self._calibrator.default_plan(float32)
        if self._wishes.edits is None:
            return plan
        values = {
            graph: {name for node in model.graph.node for name in node.output}
            for graph, model in self._models.items()
        }
        return apply_edits(plan, self._wishes.edits, self._calibrator.layers, values)

    def _record(self, whole: EngineSet) -> dict[str, CanvasSet]:
        """Records the calibration sets, and one called "held out" on other texts."""
        draft = Bundle(path=Path("draft"), sha256="", manifest=self._manifest, folder=Path("."))
        texts, seed = self._texts, self._wishes.seed
        banned = self._tokenizer.missing_ids(self._manifest.vocab_size)
        makers = {"decode": record_canvases}
        if self._wishes.precision == "int8" and self._wishes.edits is None:
            makers |= {"clean": clean_canvases, "noise": noise_canvases}
        sets = {}
        for name, make in makers.items():
            extra: dict[str, Any] = {"banned": banned} if name == "decode" else {}
            self._say(f"recording {SETS[name]}")
            with bar() as show:
                sets[name] = make(
                    draft, texts.calibration, CALIBRATION, seed=seed, engines=whole,
                    progress=show, **extra,
                )  # fmt: skip
        self._say("recording held-out canvases")
        with bar() as show:
            sets["held out"] = record_canvases(
                draft, texts.held_out, HELD_OUT, seed=seed + 1, engines=whole, banned=banned,
                progress=show,
            )  # fmt: skip
        return sets

    def _engines(self, models: Models, precision: str) -> AbstractContextManager[EngineSet]:
        return self._bench.engines(models, precision=precision, target=self._wishes.target)


def choose(comparison: Mapping[str, Figures], against_decoding: Mapping[str, Ratio]) -> str:
    """Names the set to ship: clean text, the simpler one, unless it does worse.

    Worse is a higher perplexity under equal masks, by more than the draws explain, or fewer equal
    tokens at the positions about to be committed, by more than half a per cent.
    """
    if "clean" not in comparison:
        return "decode"
    soon = {
        name: comparison[name].agreement["about_to_be_committed"]["top1"]
        for name in ("clean", "decode")
    }
    as_likely = against_decoding["clean"].low <= 1.0
    as_faithful = soon["clean"] >= soon["decode"] - 0.005
    return "clean" if as_likely and as_faithful else "decode"


def _member(model: onnx.ModelProto) -> Member:
    data = model.SerializeToString(deterministic=True)
    return Member(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
