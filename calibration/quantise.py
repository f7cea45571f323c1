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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..runtime.bundle.manifest import Manifest
from ..runtime.cli.progress import bar
from ..runtime.errors import CalibrationError
from ..runtime.families.base import LoadedModel
from ..runtime.families.table import load_model
from ..runtime.text.tokenizer import Tokenizer
from .canvases.canvases import CanvasSet
from .canvases.texts import Texts, require_tokens
from .graphs import Models, values_of
from .losses.budget import (
    LayerCost,
    Outcome,
    TableTrial,
    all_float,
    fit_budget,
    fits,
    harmless_tables,
    layer_costs,
    single_trial,
    without,
)
from .losses.loss import LossText, Ratio, cut_texts, decoded_blocks
from .losses.quality import Examiner, Totals, VariantFigures
from .options import SETS, QuantisationOptions, Quantised
from .recipe import Recipe, apply_edits, recipe_bytes
from .recording import HELD_OUT_NAME, Recording
from .scales.calibrate import Calibrator, Fitted
from .scales.extremes import beyond_float16, largest_values
from .scales.outliers import SLACKS
from .workbench import describe_graph, engines_of

NUM_SAMPLES = 8
"""Masks per window of held-out text: four antithetic pairs."""
SENSITIVITY_SHARE = 0.25
"""Of the held-out text: each layer is measured on it."""
MOST_ALONE = 48
"""Layers that are measured alone: each takes a session and a reading of the text."""
NUM_DECODES = 12
PROMPT_TOKENS = 8


class Quantiser:
    """One model on its way to one target."""

    def __init__(
        self,
        calibrator: Calibrator,
        manifest: Manifest,
        tokenizer: Tokenizer,
        texts: Texts,
        options: QuantisationOptions,
        say: Callable[[str], None],
    ) -> None:
        """Takes float32 graphs ready to be calibrated, and the draft manifest with their shapes."""
        self._calibrator, self._models = calibrator, calibrator.models
        members = {spec.file: describe_graph(self._models[spec.name]) for spec in manifest.graphs}
        self._manifest = replace(manifest, precision="fp32", members=members)
        self._tokenizer, self._texts = tokenizer, texts
        self._options, self._say = options, say
        # Nothing may be folded into a grid.
        self._outliers = SLACKS[0] if options.precision == "int4" else None
        self._known: dict[tuple[str, bytes], Totals] = {}
        """What was measured, by set and recipe."""
        self._recording = Recording(
            self._models, calibrator.layers, self._manifest, tokenizer, texts, options, say
        )

    def run(self) -> Quantised:
        """Does it all; raises CalibrationError."""
        options = self._options
        # A recipe that cannot be is refused before anything is recorded for it.
        self._calibrator.require_possible(self._edited(self._calibrator.default_recipe({})))
        with self._opened(self._models, "fp32") as whole:
            stream = self._texts.stream(options.num_tokens)
            require_tokens(len(stream), options.num_tokens, decoded_blocks(whole))
            texts = cut_texts(whole, stream, num_samples=NUM_SAMPLES, seed=options.seed)
            sets = self._recording.sets(whole)
            masked = sets["decode"].holds(self._manifest.mask_token_id)
            recipe = self._draft_recipe(sets["decode"])
            examiner = self._examiner(whole, texts, sets.pop(HELD_OUT_NAME))
            variants = {
                "fp32": examiner.examine("fp32", "fp32", self._models, whole, examiner.totals)
            }
            fp16 = self._calibrator.fp16(recipe)
            if not options.brief or options.precision == "fp16":
                variants["fp16"] = self._examine(examiner, "fp16", "fp16", fp16)
            common = {
                "sets": sets,
                "texts": texts,
                "masked": masked,
                "num_samples": len(examiner.totals[examiner.main]),
                "num_decodes": len(self._texts.held_out[:NUM_DECODES]),
            }
            if options.precision == "fp16":
                recipe = all_float(recipe)
                outcome = single_trial(recipe, variants["fp16"].worst, options.max_loss)
                outcome.require(options.max_loss, outcome.given_up, force=options.force)
                return Quantised(
                    models=fp16, recipe=recipe, outcome=outcome, variants=variants, comparison={},
                    against_decoding={}, failures={}, calibrated_on="", costs=(), tables=(),
                    largest={},
                    **common,
                )  # fmt: skip
            return self._integers(whole, recipe, examiner, variants, common)

    def _integers(
        self,
        whole: LoadedModel,
        recipe: Recipe,
        examiner: Examiner,
        variants: dict[str, VariantFigures],
        common: dict[str, Any],
    ) -> Quantised:
        options, sets = self._options, common["sets"]
        recipe, first, tables = self._first_fit(recipe, examiner, sets["decode"])
        fitted, comparison, totals, failures = self._compare(recipe, first, examiner, sets)
        gains = {
            name: examiner.ratios(found, totals["decode"])[examiner.main]
            for name, found in totals.items()
            if name != "decode"
        }
        chosen = choose(comparison, gains)
        best = fitted[chosen]
        costs: tuple[LayerCost, ...] = ()
        blocks = [text.block for text in common["texts"]]

        def measured(candidate: Recipe) -> Totals:
            return self._totals(examiner, chosen, best, candidate, blocks)

        def measure(candidate: Recipe) -> Ratio:
            return examiner.worst(measured(candidate))

        if options.edits is not None:
            outcome = single_trial(best.recipe, measure(best.recipe), options.max_loss)
        else:
            outcome, costs = self._within_budget(
                whole, best, sets[chosen], measure, common["texts"][0]
            )
        outcome.require(options.max_loss, len(list(best.recipe.layers())), force=options.force)
        name = options.precision
        outcome.require_integers(name, options.max_loss, force=options.force)
        models = self._calibrator.quantised(best, outcome.recipe)
        title, found = f"{name}, as shipped", measured(outcome.recipe)
        if outcome.recipe == best.recipe:
            variants[name] = replace(
                comparison[chosen], name=name, title=title, by_block=examiner.by_block(found)
            )
        else:
            with self._opened(models, name) as model:
                variants[name] = examiner.examine(name, title, models, model, found)
        return Quantised(
            models=models, recipe=outcome.recipe, outcome=outcome, variants=variants,
            comparison=comparison if options.edits is None else {},
            against_decoding=gains, failures=failures,
            calibrated_on=chosen, costs=costs, tables=tables,
            largest={} if options.brief else self._largest(best, sets["decode"]), **common,
        )  # fmt: skip

    def _within_budget(
        self,
        whole: LoadedModel,
        best: Fitted,
        canvases: CanvasSet,
        measure: Callable[[Recipe], Ratio],
        text: LossText,
    ) -> tuple[Outcome, tuple[LayerCost, ...]]:
        """Gives up layers where the whole is beyond the budget: int4 for int8, then for float."""
        recipe, limit = best.recipe, self._options.max_loss
        outcome, costs = fit_budget(recipe, (), measure, limit), ()
        if not outcome.met and any(layer.precision == "int4" for _, _, layer in recipe.layers()):
            costs = self._sensitivity(whole, best, canvases, recipe, text)
            costs = tuple(cost for cost in costs if cost.precision == "int4")
            outcome = fit_budget(recipe, costs, measure, limit, "int8")
            recipe = without(recipe, costs, len(costs), "int8")
        if not outcome.met:
            costs = self._sensitivity(whole, best, canvases, recipe, text)
            outcome = fit_budget(recipe, costs, measure, limit)
        return outcome, costs

    def _first_fit(
        self, recipe: Recipe, examiner: Examiner, canvases: CanvasSet
    ) -> tuple[Recipe, Fitted, tuple[TableTrial, ...]]:
        """Calibrates on decoding, and leaves embeddings and heads out that int8 would harm.

        Where the result is beyond the budget, it is done again with outliers apart, and once more
        with more of them.

        Returns:
            The draft recipe with their precisions, the same with scales, and what was measured.
        """
        first = self._fit(recipe, "decode", canvases)
        if self._options.edits is not None:
            return recipe, first, ()

        def measure(candidate: Recipe) -> Ratio:
            blocks = [examiner.main]
            return examiner.worst(self._totals(examiner, "decode", first, candidate, blocks))

        def tables() -> tuple[Recipe, tuple[TableTrial, ...]]:
            return harmless_tables(
                first.recipe, self._calibrator.layers, measure, self._options.max_loss, self._say
            )

        def decided(recipe: Recipe) -> Recipe:
            for trial in trials:
                layer = kept.graphs[trial.graph].layers[trial.layer]
                recipe = recipe.with_layer(
                    trial.graph, trial.layer, precision=layer.precision, reason=layer.reason
                )
            return recipe

        kept, trials = tables()
        for slack in SLACKS:
            if self._options.precision == "int4" or fits(measure(kept), self._options.max_loss):
                break
            self._outliers = slack
            first = self._fit(recipe, "decode", canvases)
            if all(trial.harmless for trial in trials):  # outliers apart do them no harm
                kept = decided(first.recipe)
            else:
                kept, trials = tables()
        return decided(recipe), replace(first, recipe=kept), trials

    def _fit(self, recipe: Recipe, name: str, canvases: CanvasSet) -> Fitted:
        first, more = SLACKS
        words = {None: "", first: ", with outliers apart", more: ", with more outliers apart"}
        self._say(f"calibrating on {SETS[name]}{words[self._outliers]}")
        with bar() as show:
            return self._calibrator.fit(recipe, canvases, show, outliers=self._outliers)

    def _compare(
        self, recipe: Recipe, first: Fitted, examiner: Examiner, sets: Mapping[str, CanvasSet]
    ) -> tuple[dict[str, Fitted], dict[str, VariantFigures], dict[str, Totals], dict[str, str]]:
        """Calibrates on each set and measures the result; a set that fails is left out."""
        precision = self._options.precision
        fitted, comparison, totals, failures = {}, {}, {}, {}
        for name, canvases in sets.items():
            try:
                found = first if name == "decode" else self._fit(recipe, name, canvases)
            except CalibrationError as error:
                failures[name] = str(error)
                continue
            fitted[name] = found
            blocks = [examiner.main]
            totals[name] = self._totals(examiner, name, found, found.recipe, blocks)
            models = self._calibrator.quantised(found, found.recipe)
            self._say(f"comparing {precision} from {SETS[name]} with fp32")
            with self._opened(models, self._options.precision) as model:
                comparison[name] = examiner.examine(
                    name, f"{precision}, calibrated on {SETS[name]}", models, model, totals[name]
                )
        return fitted, comparison, totals, failures

    def _largest(self, best: Fitted, canvases: CanvasSet) -> dict[str, dict[str, dict[int, float]]]:
        """What decoding really sends into each layer, whatever its scales were chosen on."""
        self._say("measuring ranges by mask ratio")
        with bar() as show:
            return self._calibrator.largest(best, canvases, show)

    def _sensitivity(
        self,
        whole: LoadedModel,
        best: Fitted,
        canvases: CanvasSet,
        recipe: Recipe,
        text: LossText,
    ) -> tuple[LayerCost, ...]:
        chosen = self._calibrator.costliest(best, canvases, recipe, MOST_ALONE)
        self._say(f"measuring {len(chosen)} layers alone, those whose products lose most")
        short = text.shortened(int(text.num_tokens * SENSITIVITY_SHARE))
        reference = short.totals(whole)

        def measure(recipe: Recipe) -> Ratio:
            models = self._calibrator.quantised(best, recipe)
            with self._opened(models, self._options.precision) as model:
                return short.ratio(short.totals(model), reference)

        with bar() as show:
            return layer_costs(recipe, measure, chosen, show)

    def _totals(
        self,
        examiner: Examiner,
        name: str,
        fitted: Fitted,
        recipe: Recipe,
        blocks: Sequence[int | None],
    ) -> Totals:
        """Measures a recipe fitted on a set, at those of the block sizes that are not known yet."""
        key = (name, recipe_bytes(recipe))
        known = self._known.get(key, {})
        if missing := [block for block in blocks if block not in known]:
            at = ", ".join(str(block) for block in missing if block is not None)
            self._say(f"measuring a recipe{' at blocks of ' + at if at else ''}")
            models = self._calibrator.quantised(fitted, recipe)
            with self._opened(models, self._options.precision) as model, bar() as show:
                known = {**known, **examiner.measure(model, blocks=missing, progress=show)}
            self._known[key] = known
        return known

    def _examine(self, examiner: Examiner, name: str, title: str, models: Models) -> VariantFigures:
        self._say(f"measuring {title}")
        with self._opened(models, name) as model, bar() as show:
            totals = examiner.measure(model, progress=show)
            return examiner.examine(name, title, models, model, totals)

    def _examiner(
        self, whole: LoadedModel, texts: Sequence[LossText], held_out: CanvasSet
    ) -> Examiner:
        self._say("measuring fp32")
        with bar() as show:
            return Examiner(
                whole,
                texts=texts,
                canvases=held_out.items,
                prompts=[ids[:PROMPT_TOKENS] for ids in self._texts.held_out[:NUM_DECODES]],
                tokenizer=self._tokenizer,
                judge=self._options.judge,
                seed=self._options.seed,
                progress=show,
            )

    def _draft_recipe(self, canvases: CanvasSet) -> Recipe:
        """The default recipe with the values that float16 cannot hold, and the caller's edits."""
        float32 = {}
        for graph, model in self._models.items():
            names = self._calibrator.form.half_values(model)
            own = [item for item in canvases.items if item.spec.name == graph]
            if names:
                self._say(f"looking for values of {graph} beyond float16")
                with bar() as show:
                    float32[graph] = beyond_float16(largest_values(model, own, names, show))
        return self._edited(self._calibrator.default_recipe(float32))

    def _edited(self, recipe: Recipe) -> Recipe:
        if self._options.edits is None:
            return recipe
        values = {graph: values_of(model) for graph, model in self._models.items()}
        return apply_edits(recipe, self._options.edits, self._calibrator.layers, values)

    @contextmanager
    def _opened(self, models: Models, precision: str) -> Iterator[LoadedModel]:
        target = self._options.target
        with engines_of(self._manifest, models, precision=precision, target=target) as engines:
            yield load_model(self._manifest, engines)


def choose(comparison: Mapping[str, VariantFigures], against_decoding: Mapping[str, Ratio]) -> str:
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
