"""The way from float32 graphs to what ships: canvases, scales, budget, and the report of it all.

The order is that of the dependencies: the float32 graphs decode the calibration prompts; values
beyond float16 are found; embeddings and heads that int8 would harm are left out of it; each set of
canvases gives scales, and the simplest set that does as well as the others is kept; layers that
cost too much go back to floating point; every variant is measured. The budget holds at every block
size that texts are decoded or filled by; what is searched (layers alone, sets of canvases) is
compared at the one that decoding takes unless asked. Knows no family and no file format: graphs
come in and go out as models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from ..runtime.bundle.manifest import Manifest
from ..runtime.cli.bars import bar
from ..runtime.engines.base import EngineSet
from ..runtime.errors import CalibrationError
from ..runtime.text.tokenizer import Tokenizer
from .canvases.canvases import CanvasSet
from .canvases.texts import Texts, require_tokens
from .choose import choose
from .losses.budget import fit_budget, single_trial
from .losses.loss import LossText, Ratio, cut_texts, decoded_blocks
from .losses.quality import Examiner, Figures, Totals
from .losses.sensitivity import LayerCost, all_float, layer_costs
from .losses.tables import TableTrial, harmless_tables
from .recording import HELD_OUT_NAME, Recording
from .scales.bench import Models, Workbench, describe_graph
from .scales.calibrate import Calibrator, Fitted, Recipe
from .scales.extremes import beyond_float16, largest_values
from .scales.plan import Plan, apply_edits, plan_bytes
from .wishes import SETS, Shipped, Wishes

NUM_SAMPLES = 8
"""Masks per window of held-out text: four antithetic pairs."""
SENSITIVITY_SHARE = 0.25
"""Of the held-out text: each layer is measured on it."""
NUM_DECODES = 12
PROMPT_TOKENS = 8


class Quantiser:
    """One model on its way to one target."""

    def __init__(
        self,
        models: Models,
        manifest: Manifest,
        tokenizer: Tokenizer,
        texts: Texts,
        recipe: Recipe,
        wishes: Wishes,
        say: Callable[[str], None],
    ) -> None:
        """Takes float32 graphs by name, the draft manifest that has their shapes, and how a
        target's graphs are made."""
        members = {spec.file: describe_graph(models[spec.name]) for spec in manifest.graphs}
        self._manifest = replace(manifest, precision="fp32", members=members)
        self._models, self._tokenizer, self._texts = models, tokenizer, texts
        self._wishes, self._say = wishes, say
        self._bench = Workbench(self._manifest)
        roles = {
            spec.name: {tensor.name: tensor.role for tensor in spec.inputs}
            for spec in manifest.graphs
        }
        self._calibrator = Calibrator(models, roles, recipe)
        self._recording = Recording(
            models, self._calibrator.layers, self._manifest, tokenizer, texts, wishes, say
        )

    def run(self) -> Shipped:
        """Does it all.

        Raises:
            CalibrationError: The text, the plan or the budget cannot be used or met.
        """
        wishes = self._wishes
        # A plan that cannot be is refused before anything is recorded for it.
        self._calibrator.require_possible(self._edited(self._calibrator.default_plan({})))
        with self._engines(self._models, "fp32") as whole:
            stream = self._texts.stream(wishes.num_tokens)
            require_tokens(len(stream), wishes.num_tokens, decoded_blocks(self._manifest, whole))
            texts = cut_texts(
                self._manifest, whole, stream, num_samples=NUM_SAMPLES, seed=wishes.seed
            )
            sets = self._recording.sets(whole)
            masked = sets["decode"].holds(self._manifest.mask_token_id)
            plan = self._draft_plan(sets["decode"])
            examiner = self._examiner(whole, texts, sets.pop(HELD_OUT_NAME))
            variants = {
                "fp32": examiner.examine("fp32", "fp32", self._models, whole, examiner.totals)
            }
            fp16 = self._calibrator.build_fp16(plan)
            variants["fp16"] = self._examine(examiner, "fp16", "fp16", fp16)
            common = {
                "sets": sets,
                "texts": texts,
                "masked": masked,
                "num_samples": len(examiner.totals[examiner.main]),
                "num_decodes": len(self._texts.held_out[:NUM_DECODES]),
            }
            if wishes.precision == "fp16":
                plan = all_float(plan)
                outcome = single_trial(plan, variants["fp16"].worst, wishes.max_loss)
                outcome.require(wishes.max_loss, outcome.num_float, force=wishes.force)
                return Shipped(
                    models=fp16, plan=plan, outcome=outcome, variants=variants, comparison={},
                    against_decoding={}, failures={}, calibrated_on="", costs=(), tables=(),
                    largest={},
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
        wishes, sets = self._wishes, common["sets"]
        plan, first, tables = self._first_fit(plan, examiner, sets["decode"])
        fitted, comparison, totals, failures = self._compare(plan, first, examiner, sets)
        gains = {
            name: examiner.ratios(found, totals["decode"])[examiner.main]
            for name, found in totals.items()
            if name != "decode"
        }
        chosen = choose(comparison, gains)
        best = fitted[chosen]
        costs = self._sensitivity(whole, best, common["texts"][0])
        known = {plan_bytes(best.plan): totals[chosen]}

        def measure(candidate: Plan) -> Ratio:
            found = known.get(plan_bytes(candidate), {})
            rest = [text.block for text in common["texts"] if text.block not in found]
            found = {**found, **self._totals(examiner, best, candidate, rest)}
            known[plan_bytes(candidate)] = found
            return examiner.worst(found)

        if wishes.edits is not None:
            outcome = single_trial(best.plan, measure(best.plan), wishes.max_loss)
        else:
            outcome = fit_budget(best.plan, costs, measure, wishes.max_loss)
        outcome.require(wishes.max_loss, len(list(best.plan.layers())), force=wishes.force)
        outcome.require_int8(wishes.max_loss, force=wishes.force)
        models = self._calibrator.build(best, outcome.plan)
        title, found = "int8, as shipped", known[plan_bytes(outcome.plan)]
        if outcome.plan == best.plan:
            variants["int8"] = replace(
                comparison[chosen], name="int8", title=title, by_block=examiner.by_block(found)
            )
        else:
            with self._engines(models, "int8") as engines:
                variants["int8"] = examiner.examine("int8", title, models, engines, found)
        return Shipped(
            models=models, plan=outcome.plan, outcome=outcome, variants=variants,
            comparison=comparison if wishes.edits is None else {},
            against_decoding=gains, failures=failures,
            calibrated_on=chosen, costs=costs, tables=tables,
            largest=self._largest(best, sets["decode"]), **common,
        )  # fmt: skip

    def _first_fit(
        self, plan: Plan, examiner: Examiner, canvases: CanvasSet
    ) -> tuple[Plan, Fitted, tuple[TableTrial, ...]]:
        """Calibrates on decoding, and leaves embeddings and heads out that int8 would harm.

        Returns:
            The draft plan with their precisions, the same with scales, and what was measured.
        """
        first = self._fit(plan, "decode", canvases)
        if self._wishes.edits is not None:
            return plan, first, ()

        def measure(candidate: Plan) -> Ratio:
            return examiner.worst(self._totals(examiner, first, candidate, [examiner.main]))

        kept, trials = harmless_tables(
            first.plan, self._calibrator.layers, measure, self._wishes.max_loss, self._say
        )
        for trial in trials:
            layer = kept.graphs[trial.graph].layers[trial.layer]
            plan = plan.with_layer(
                trial.graph, trial.layer, precision=layer.precision, reason=layer.reason
            )
        return plan, replace(first, plan=kept), trials

    def _fit(self, plan: Plan, name: str, canvases: CanvasSet) -> Fitted:
        self._say(f"calibrating on {SETS[name]}")
        with bar() as show:
            return self._calibrator.fit(plan, canvases, show)

    def _compare(
        self, plan: Plan, first: Fitted, examiner: Examiner, sets: Mapping[str, CanvasSet]
    ) -> tuple[dict[str, Fitted], dict[str, Figures], dict[str, Totals], dict[str, str]]:
        """Calibrates on each set and measures the result; a set that fails is left out."""
        fitted, comparison, totals, failures = {}, {}, {}, {}
        for name, canvases in sets.items():
            try:
                found = first if name == "decode" else self._fit(plan, name, canvases)
            except CalibrationError as error:
                failures[name] = str(error)
                continue
            models = self._calibrator.build(found, found.plan)
            fitted[name] = found
            self._say(f"measuring int8 from {SETS[name]}")
            with self._engines(models, "int8") as engines:
                with bar() as show:
                    totals[name] = examiner.measure(engines, blocks=[examiner.main], progress=show)
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
            with self._engines(self._calibrator.build(best, plan), "int8") as engines:
                return short.ratio(short.totals(self._manifest, engines), reference)

        with bar() as show:
            return layer_costs(best.plan, measure, show)

    def _totals(
        self, examiner: Examiner, best: Fitted, plan: Plan, blocks: Sequence[int | None]
    ) -> Totals:
        """Measures a plan as a whole at some block sizes."""
        if not blocks:
            return {}
        at = ", ".join(str(block) for block in blocks if block is not None)
        self._say(f"measuring a plan{' at blocks of ' + at if at else ''}")
        models = self._calibrator.build(best, plan)
        with self._engines(models, "int8") as engines, bar() as show:
            return examiner.measure(engines, blocks=blocks, progress=show)

    def _examine(self, examiner: Examiner, name: str, title: str, models: Models) -> Figures:
        self._say(f"measuring {title}")
        with self._engines(models, name) as engines, bar() as show:
            totals = examiner.measure(engines, progress=show)
            return examiner.examine(name, title, models, engines, totals)

    def _examiner(
        self, whole: EngineSet, texts: Sequence[LossText], held_out: CanvasSet
    ) -> Examiner:
        self._say("measuring fp32")
        with bar() as show:
            return Examiner(
                self._manifest,
                whole,
                texts=texts,
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
            own = [item for item in canvases.items if item.spec.name == graph]
            if names:
                self._say(f"looking for values of {graph} beyond float16")
                with bar() as show:
                    float32[graph] = beyond_float16(largest_values(model, own, names, show))
        return self._edited(self._calibrator.default_plan(float32))

    def _edited(self, plan: Plan) -> Plan:
        if self._wishes.edits is None:
            return plan
        values = {
            graph: {name for node in model.graph.node for name in node.output}
            for graph, model in self._models.items()
        }
        return apply_edits(plan, self._wishes.edits, self._calibrator.layers, values)

    def _engines(self, models: Models, precision: str) -> AbstractContextManager[EngineSet]:
        return self._bench.engines(models, precision=precision, target=self._wishes.target)
