"""What a sweep came to: figures of policies, differences seed by seed, and the tables and figure of them."""

import csv
import io
from collections.abc import Mapping
from xml.etree import ElementTree

import pytest

from spa_recipes.algo.paired import estimate, holm
from spa_recipes.recipe.sweep import Sweep
from spa_recipes.report.policies import lines
from spa_recipes.report.sweep import (
    Measured,
    best,
    compared,
    differences_csv,
    differences_markdown,
    figure_svg,
    figures_of,
    known_metrics,
    metric_of,
    page_markdown,
    values_csv,
    values_of,
    variants_markdown,
)
from spa_recipes.state.stagedir import Manifest
from tests.kit.plans import plan_of

WINS = {
    "dpo": {1: 0.60, 2: 0.70, 3: 0.65},
    "spa": {1: 0.66, 2: 0.74, 3: 0.73},
    "more": {1: 0.61, 2: 0.69, 4: 0.99},
}


def sweep(**changes: object) -> Sweep:
    values: Mapping[str, object] = {
        "name": "s",
        "recipe": "mini.yaml",
        "seeds": [1, 2, 3, 4],
        "variants": [{"name": "dpo", "label": "DPO | plain"}, {"name": "spa", "label": "SPA"}, {"name": "more"}],
        "control": "dpo",
        "metrics": ["win_rate", "tokens"],
    }
    return Sweep.model_validate({**values, **changes})


def measured(of: Sweep) -> list[Measured]:
    return [
        Measured(variant, {seed: {"win_rate": win, "tokens": 30.0 + seed} for seed, win in WINS[variant.name].items()})
        for variant in of.variants
    ]


def test_differences_are_those_of_the_seeds_that_both_have() -> None:
    spa, more, *_ = compared(sweep(), measured(sweep()))
    gaps = [0.66 - 0.60, 0.74 - 0.70, 0.73 - 0.65]
    assert (spa.of.name, spa.minus.name, spa.metric, spa.better) == ("spa", "dpo", "win_rate", 3)
    assert spa.found == estimate(gaps)
    assert more.found == estimate([0.61 - 0.60, 0.69 - 0.70])
    assert more.better == 1


def test_holm_corrects_for_the_hypotheses_about_the_first_metric_and_for_no_others() -> None:
    found = compared(sweep(), measured(sweep()))
    wins = [one for one in found if one.metric == "win_rate"]
    assert [one.corrected for one in wins] == holm([one.found.p or 0.0 for one in wins])
    assert all(one.corrected is None for one in found if one.metric == "tokens")
    one = sweep(hypotheses=["spa"], differences=[{"of": "more", "minus": "spa"}])
    found = compared(one, measured(one))
    assert [(each.of.name, each.minus.name) for each in found[:2]] == [("spa", "dpo"), ("more", "spa")]
    assert found[0].corrected == found[0].found.p
    assert found[1].corrected is None


def test_a_stated_hypothesis_counts_even_where_its_runs_are_missing() -> None:
    stated = sweep(hypotheses=["spa", "more"])
    found = compared(stated, [one for one in measured(stated) if one.variant.name != "more"])
    (tested,) = [one for one in found if one.corrected is not None]
    assert tested.corrected == pytest.approx(2 * (tested.found.p or 0.0))
    assert "Holm's correction for 2 hypotheses" in page_markdown(stated, measured(stated)[:2], found, [])


def test_the_best_have_the_largest_means_and_ties_go_to_the_first() -> None:
    of = sweep()
    assert best(measured(of), "win_rate", 2) == ["more", "spa"]
    assert best(measured(of)[::-1], "win_rate", 1) == ["more"]
    equal = [Measured(variant, {1: {"win_rate": 0.5}}) for variant in of.variants]
    assert best(equal, "win_rate", 2) == ["dpo", "spa"]
    assert best([Measured(of.variants[0], {1: {"win_rate": None}})], "win_rate", 1) == []


def test_the_tables_for_people() -> None:
    of = sweep(hypotheses=["spa"])
    found = compared(of, measured(of))
    table = variants_markdown(of.metrics, measured(of)).splitlines()
    assert table[0] == "|  | win rate, % | tokens | seeds |"
    assert table[2] == "| DPO \\| plain | 65.0 ± 5.0 | 32.00 ± 1.00 | 3 |"
    differences = differences_markdown("win_rate", found).splitlines()
    assert differences[0] == "| win rate, %, of | minus that of | difference (95 %) | better on | p, Holm |"
    assert differences[2] == "| SPA | DPO \\| plain | +6.0 (+1.0 to +11.0) | 3 of 3 seeds | 0.035 |"
    assert differences[3].endswith("| 1 of 2 seeds |  |")
    page = page_markdown(of, measured(of), found, ["A note."])
    assert "p is that of the paired t test about win rate." in page
    assert page.endswith("\n\nA note.\n")
    assert "p, Holm" not in differences_markdown("tokens", found)


def test_a_page_says_why_nothing_is_tested() -> None:
    chosen = sweep(halving=[{"seeds": 1, "keep": 1}])
    page = page_markdown(chosen, measured(chosen), compared(chosen, measured(chosen)), [])
    assert "Nothing is tested: these seeds chose the variants." in page
    none = sweep(hypotheses=[])
    assert "Nothing is tested." in page_markdown(none, measured(none), compared(none, measured(none)), [])


def test_the_tables_for_programs_have_every_number() -> None:
    of = sweep(hypotheses=["spa"])
    rows = [*csv.DictReader(io.StringIO(values_csv(of.metrics, measured(of))))]
    assert [(row["variant"], row["seed"], float(row["win_rate"])) for row in rows] == [
        (name, str(seed), win) for name, wins in WINS.items() for seed, win in wins.items()
    ]
    found = compared(of, measured(of))
    rows = [*csv.DictReader(io.StringIO(differences_csv(found)))]
    for row, one in zip(rows, found, strict=True):
        assert float(row["low"]) == one.found.low
        assert row["p_holm"] == ("" if one.corrected is None else str(one.corrected))
        assert (row["p"] == "") == (one.corrected is None)


def test_the_figure_has_a_row_for_each_difference_in_the_first_metric() -> None:
    of = sweep(differences=[{"of": "more", "minus": "spa"}], hypotheses=["spa"])
    found = compared(of, measured(of))
    root = ElementTree.fromstring(figure_svg(of, found))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"SPA", "more minus SPA"} <= {*texts}
    assert texts[-1] == "win rate, %: difference from DPO | plain unless another is named, 95 % interval"
    marks = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(marks) == 2
    single = [Measured(one.variant, {1: {"win_rate": 0.5, "tokens": 3.0}}) for one in measured(of)]
    assert figure_svg(of, compared(of, single)) == ""  # one seed has no interval


def manifests() -> dict[str, Manifest]:
    """What a run of one iteration leaves, as far as tables read it."""

    def made(kind: str, rows: int, **metrics: float) -> Manifest:
        return Manifest(kind, kind, "0" * 32, {}, {}, rows, 0, 1.0, metrics, {}, "", 1)

    return {
        "evaluate-init": made("evaluate", 16, mean_tokens=20.0),
        "seed": made("dpo", 60, steps=4),
        "evaluate-0": made("evaluate", 16, mean_tokens=21.0, win_rate_vs_init=0.5, prompts=16),
        "judge-1": made("judge", 30, accuracy_vs_gold=0.8),
        "refine-1": made("refine", 30, steps=2, flag_precision=0.3),
        "evaluate-1": made("evaluate", 16, mean_tokens=22.0, win_rate_vs_init=0.6, prompts=16),
    }


def test_figures_are_those_of_spa_compare_and_any_of_the_iterations() -> None:
    plan = plan_of(data={"prompts_per_iteration": [32]})
    names = ["labels", "steps", *(name for name in known_metrics() if name not in ("labels", "steps"))]
    figures = figures_of(names)
    for line in lines(plan, "mini", manifests()):
        values = values_of(plan, manifests(), str(line["policy"]).removeprefix("pi_"), figures)
        assert values is not None
        assert {name: line[name] for name in line if name in names} == {
            name: values[name] for name in line if name in names
        }
    last = values_of(plan, manifests(), "last", figures_of(["win_rate", "steps", "flag_precision"]))
    assert last == {"win_rate": 0.6, "labels": 60, "steps": 6, "flag_precision": 0.3}
    assert values_of(plan, manifests(), 2, figures) is None


@pytest.mark.parametrize("name", known_metrics())
def test_every_metric_has_a_heading(name: str) -> None:
    assert metric_of(name).heading
