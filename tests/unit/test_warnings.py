"""What a run's figures warn of: a table of figures and of the words and keys that a user is told."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.recipe.schema import Recipe
from spa_recipes.report.figures import interval, with_interval
from spa_recipes.report.warnings import warnings
from spa_recipes.state.stagedir import Manifest
from tests.kit.finished_runs import make_run, manifests
from tests.kit.plans import plan_of
from tests.kit.recipes import mini
from tests.kit.state import FIELDS

LN_2 = math.log(2)
RECIPE = Recipe.model_validate(mini())


def stage(name: str, **metrics: Any) -> Manifest:
    """A finished stage; its kind is its name without the number, but for the seed's DPO."""
    kind = "dpo" if name == "seed" else name.rpartition("-")[0]
    return Manifest(files={}, **{**FIELDS, "id": name, "kind": kind, "rows": 200, "metrics": metrics})


def told(*stages: Manifest, recipe: Recipe = RECIPE) -> list[str]:
    return warnings(recipe, {one.id: one for one in stages})


INIT = stage("evaluate-init", mean_tokens=40.0)
TABLE: dict[str, tuple[list[Manifest], list[str]]] = {
    "a loss at ln 2": (
        [stage("seed", train_loss=0.693, steps=3)],
        ["stayed at ln 2 (0.693) over 3 steps", "seed_training.learning_rate", "num_train_epochs", "data.seed_labels"],
    ),
    "a refinement at ln 2": (
        [stage("refine-1", train_loss=LN_2 - 0.001, steps=1)],
        ["nothing was learned in refine-1", "1 step.", "refine.learning_rate", "refine.num_train_epochs"],
    ),
    "a loss above ln 2": (
        [stage("seed", train_loss=0.75, steps=3)],
        ["above the ln 2", "lower seed_training.learning"],
    ),
    "a loss below ln 2": ([stage("seed", train_loss=0.68, steps=3)], []),
    "the loss of supervised fine-tuning": ([stage("sft-1", train_loss=2.5)], []),
    "the same answers": (
        [INIT, stage("evaluate-1", same_as_init=0.95)],
        ["95.0% of the answers of pi_1 are those of pi_init", "refine.learning_rate"],
    ),
    "the same answers after the seed": ([stage("evaluate-0", same_as_init=1.0)], ["raise seed_training.learning_rate"]),
    "other answers": ([stage("evaluate-1", same_as_init=0.5)], []),
    "an even win rate of ten prompts": (
        [stage("evaluate-1", prompts=10, win_rate_vs_init=0.5)],
        ["pi_1, 50.0% (23.7% to 76.3%), may be 50 %", "data.heldout", "learning_rate", "data.seed_labels"],
    ),
    "a better policy after an even one": (
        [stage("evaluate-0", win_rate_vs_init=0.5), stage("evaluate-1", win_rate_vs_init=0.7)],
        [],
    ),
    "a worse policy": ([stage("evaluate-1", win_rate_vs_init=0.3)], ["is below 50 %", "Lower the learning rates"]),
    "both rewards fall": (
        [stage("refine-1", **{"rewards/chosen": -1.5, "rewards/rejected": -2.0})],
        ["refine-1 runs away", "reward -1.50; rejected -2.00", "refine.learning_rate", "refine.sft_weight"],
    ),
    "the rejected one falls more": ([stage("refine-1", **{"rewards/chosen": -0.3, "rewards/rejected": -2.0})], []),
    "the chosen one rises": ([stage("refine-1", **{"rewards/chosen": 0.3, "rewards/rejected": -2.0})], []),
    "answers that grow": (
        [INIT, stage("evaluate-1", mean_tokens=100.0)],
        ["grew from 40 tokens (pi_init) to 100 (pi_1)", "judge.length_penalty to balanced"],
    ),
    "answers that stay": ([INIT, stage("evaluate-1", mean_tokens=41.0)], []),
    "a judge that favours length": (
        [stage("judge-2", chosen_tokens=90.0, rejected_tokens=60.0)],
        ["judge of judge-2 favours length: chosen answers have 90 tokens", "judge.length_penalty"],
    ),
    "answers that are cut": (
        [stage("generate-1", length_cut=0.8, thinking=0.0)],
        ["80.0% of the answers of generate-1 are cut at sampling.max_tokens", "model.chat_template_kwargs"],
    ),
    "answers that think": (
        [stage("generate-1", length_cut=0.2, thinking=1.0)],
        ["100.0% of the answers of generate-1 hold a think block, and 20.0% are cut", "enable_thinking: false"],
    ),
    "some answers that are cut": ([stage("generate-1", length_cut=0.3)], []),
    "a judge that gets worse": (
        [stage("evaluate-0", heldout_accuracy=0.8), stage("evaluate-1", heldout_accuracy=0.7)],
        ["the label accuracy fell from 80.0% to 70.0%"],
    ),
    "a judge that gets better": (
        [stage("evaluate-0", heldout_accuracy=0.7), stage("evaluate-1", heldout_accuracy=0.8)],
        [],
    ),
}


@pytest.mark.parametrize(("stages", "words"), TABLE.values(), ids=list(TABLE))
def test_figures_and_their_warning(stages: list[Manifest], words: list[str]) -> None:
    found = told(*stages)
    assert len(found) == bool(words), found
    for word in words:
        assert word in found[0]


@pytest.mark.parametrize("change", [{"loss": "ipo"}, {"divergence": "chi_squared"}, {"sft_weight": 0.5}])
def test_a_loss_that_does_not_begin_at_ln_2_is_not_compared_with_it(change: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(mini(refine=change))
    assert told(stage("refine-1", train_loss=LN_2, steps=3), recipe=recipe) == []


def test_answers_to_one_prompt_are_one_outcome() -> None:
    once, often = stage("evaluate-1", win_rate_vs_init=0.5), stage("evaluate-1", win_rate_vs_init=0.5, prompts=40)
    assert interval(often, "win_rate_vs_init") == interval(replace(once, rows=40), "win_rate_vs_init")


def test_report_and_card_tell_what_summary_tells(tmp_path: Path) -> None:
    from spa_recipes.report.page import render

    plan = plan_of()
    run = make_run(tmp_path / "runs" / "mini", plan)
    found = manifests(run, plan)
    assert isinstance(plan.recipe, Recipe)
    texts = warnings(plan.recipe, found)
    assert len(texts) == 2
    page, card = render(plan, run, found), (run.final / "README.md").read_text()
    rate = with_interval(0.634, *interval(found["evaluate-2"], "win_rate_vs_init"))
    for text in (*(text[1:] for text in texts), rate):
        assert text in page
        assert text in card
