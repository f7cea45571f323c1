"""Which graph and which output a step of latent diffusion takes."""

import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.dimba.rule import clamps, graph_for
from dlm_edge.runtime.families.dimba.rules import Ddim, DpmSolver
from dlm_edge.runtime.families.table import rules_of, with_rule
from dlm_edge.train.families import FAMILIES


def specs(**options):
    family = FAMILIES["dimba"]
    config = family.make_config(
        {
            "dim": 32, "num_layers": 1, "num_heads": 2, "state_size": 8, "vocab_size": 20,
            "context": 16, "eos_token_id": 0, "mask_token_id": 1, **options,
        }
    )  # fmt: skip
    graphs = family.graphs(family.make_model(config["model"]), config)
    return [s for graph in graphs for s in graph.specs(graph.shapes((), ()), precision="fp32")]


def test_the_last_steps_are_clamped_and_the_nearest_embedding_goes_before_the_mean():
    assert clamps(Ddim(steps=4)) == ("clean",) * 4
    assert clamps(Ddim(steps=4, clamp_expected=0.5)) == ("clean", "clean", "expected", "expected")
    both = Ddim(steps=4, clamp_expected=0.75, clamp_nearest=0.25)
    assert clamps(both) == ("clean", "expected", "expected", "nearest")
    assert clamps(DpmSolver(steps=3, clamp_nearest=1.0)) == ("nearest",) * 3
    assert clamps(Ddim(steps=10, clamp_nearest=0.01))[-2:] == ("clean", "nearest")


def test_guidance_takes_a_graph_of_its_own_and_none_where_training_hid_no_prompt():
    assert graph_for(specs(), 1.0) == "denoise"
    assert graph_for(specs(), 1.5) == "guided"
    assert graph_for(specs(condition_dropout=0.0), 1.0) == "denoise"
    with pytest.raises(ConfigError, match="--condition-dropout above 0"):
        graph_for(specs(condition_dropout=0.0), 1.5)


def test_an_option_of_one_rule_chooses_it():
    assert with_rule({"eta": 0.5}, DpmSolver(), "dimba")["rule"] == "ddim"
    assert [rule.name for rule in rules_of("dimba")] == ["ddim", "dpm_solver"]
