"""The model card of a run's final model: what it is, how it was made, and what is known of it.

Everything comes from the plan and the manifests, nothing from the clock: the same results give the same card.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import yaml

from spa_recipes.data.commits import is_commit
from spa_recipes.data.hub import MAIN
from spa_recipes.plan import CARD, RECIPE_FILE, External, Input, Plan, Stage
from spa_recipes.recipe.schema import Recipe
from spa_recipes.report.answers import answers
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.report.figures import LARGE_COUNT, is_numbered, iterations
from spa_recipes.report.policies import as_table, lines
from spa_recipes.report.public import is_local, last_part, public_recipe
from spa_recipes.report.warnings import warnings
from spa_recipes.run.decay import early_stop
from spa_recipes.state.stagedir import Manifest

DIGEST_SHOWN = 16
"""Hex digits of a fingerprint that people compare."""

JUDGES = {
    "implicit_reward": "by the reward that is implicit in {policy} (its log-probabilities against those of "
    "{reference})",
    "reward_model": "by a reward model",
    "gold": "by the sandbox's gold reward, which is a control",
    "random": "by a coin, which is a control",
    "llm": "by asking {model} in words which answer is better",
}
"""How the answers were labelled, by `judge.type`."""

REFERENCES = {
    "init": "the model before the preference training",
    "base": "the base model",
    "previous": "the policy before it",
}
"""The judge's reference, by `judge.reference`."""

POLICIES = {
    "previous": "it",
    "seed": "pi_0",
    "mean": "it, averaged with that in pi_0",
    "members": "several seed policies, averaged over them",
}
"""The model that judges, by `judge.policy`."""

WIN_RATES = {
    "seed": "The win rates and rewards are judged by the implicit reward of pi_0 against pi_init. It knows the seed "
    "labels only and favours its own kind: read them as a trend.",
    "gold": "The win rates and rewards are judged by the gold reward of the sandbox, a small generated world: they say "
    "nothing of other tasks.",
    "implicit_reward": "The win rates and rewards are judged by the implicit reward of a model from outside the run "
    "(`evaluation.reward_policy` against `evaluation.reward_reference` in the recipe).",
}
"""What a reader has to know about a win rate, by `evaluation.reward`."""


class Origin(NamedTuple):
    """A dataset that was used: for what, where it comes from, and what was read of it."""

    use: str
    source: str
    read: str


def final_texts(plan: Plan, found: Mapping[str, Manifest]) -> dict[str, str]:
    """The card and the recipe that stand beside the final model of a finished run, by file name.

    Args:
        found: manifests of the stages that are done.
    """
    public = public_recipe(plan)
    recipe_text = yaml.safe_dump(public, sort_keys=False, allow_unicode=True, width=110)
    return {CARD: _card(plan, found, public, recipe_text), RECIPE_FILE: recipe_text}


def _card(plan: Plan, found: Mapping[str, Manifest], public: Mapping[str, Any], recipe_text: str) -> str:
    """The card as text; `public` is what of the recipe may be shown, `recipe_text` the same as YAML."""
    assert isinstance(plan.recipe, Recipe)
    recipe, made = plan.recipe, plan.newest_model(found)
    assert made is not None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spa_recipes.report", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    headings, policies = as_table(lines(plan, recipe.name, found))
    return environment.get_template("card.md.jinja").render(
        metadata=yaml.safe_dump(_metadata(plan), sort_keys=False, allow_unicode=True),
        name=recipe.name,
        description=public["description"],
        recipe=recipe,
        symbol=_symbol(made, recipe),
        stage=made.id,
        base=_base(plan),
        with_seed="seed" in found,
        iterations=sum(is_numbered(name, "refine") for name in found),
        judge=_judge(public["judge"]),
        origins=_origins(plan, found),
        shares=_shares(found["data"].metrics) if "data" in found else [],
        headings=headings,
        policies=policies,
        rounds=_rounds(found),
        caveats=_caveats(plan, found),
        versions=versions(found),
        benchmarks=benchmark_lines(found),
        local=_local(plan, public),
        recipe_text=recipe_text.rstrip("\n"),
    )


def _symbol(made: Stage, recipe: Recipe) -> str:
    """What the method calls the policy that a stage makes."""
    if made.kind == "extrapolate":
        a = f"{recipe.final.extrapolate:g}"
        return f"pi_{recipe.iterations} with its weights W extrapolated, W + {a}*(W - W_init)"
    if made.kind == "refine":
        return "pi_" + made.id.removeprefix("refine-")
    return "pi_0" if made.kind == "dpo" else "pi_init"


def _metadata(plan: Plan) -> dict[str, Any]:
    """The part that the Hub reads. The license is left out, since only the owner can name it."""
    assert isinstance(plan.recipe, Recipe)
    base = _base_input(plan)
    datasets = [value.location for _, value in _sources(plan) if _on_hub(value)]
    return {
        **({"base_model": base.location} if isinstance(base, External) and _on_hub(base) else {}),
        **({"datasets": list(dict.fromkeys(datasets))} if datasets else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["spa", "dpo", "preference-alignment", *(["sft"] if plan.recipe.sft else []), "arxiv:2406.04412"],
    }


def _on_hub(value: External) -> bool:
    return value.fingerprint.startswith("hub:")


def _base_input(plan: Plan) -> Input | None:
    """The model that everything started from."""
    sft = [stage.inputs["policy"] for stage in plan.stages if stage.kind == "sft"]
    return sft[0] if sft else plan.initial_policy


def _base(plan: Plan) -> str:
    base = _base_input(plan)
    if isinstance(base, External):
        return _place(base, "")
    return "the sandbox's tiny Llama, freshly initialised"


def _sources(plan: Plan) -> list[tuple[str, External]]:
    """Datasets of the run with their use, in the order of the stages."""
    names = {"pairs": "labelled pairs", "prompts": "prompts of the iterations", "source": "conversations for SFT"}
    return [
        (names[role], value)
        for stage in plan.stages
        if stage.kind in ("data", "sft")
        for role, value in stage.inputs.items()
        if role in names and isinstance(value, External)
    ]


def _place(value: External, kind: str) -> str:
    """Where an input comes from; `kind` is the part of the Hub's address before its id."""
    if is_local(value):
        digest = value.fingerprint.removeprefix("sha256:")[:DIGEST_SHOWN]
        return f"`{last_part(value.location)}`, not on the Hub (sha256 `{digest}…`)"
    if _on_hub(value):
        revision = f"`{value.revision or MAIN}`" + ("" if is_commit(value.revision) else ", which is not fixed")
        return f"[{value.location}](https://huggingface.co/{kind}{value.location}), revision {revision}"
    return f"the sandbox of spa-recipes, generated ({value.fingerprint.removeprefix('sandbox:').replace(',', ', ')})"


def _origins(plan: Plan, found: Mapping[str, Manifest]) -> list[Origin]:
    """The datasets, each with what was read of it."""
    data = found["data"].metrics if "data" in found else {}
    read = {
        "labelled pairs": _read(data.get("pairs"), data.get("form"), data.get("skipped")),
        "prompts of the iterations": _read(None, None, data.get("skipped_prompts")),
        "conversations for SFT": _read(found["sft"].rows if "sft" in found else None, None, None),
    }
    return [Origin(use, _in_table(_place(value, "datasets/")), _in_table(read[use])) for use, value in _sources(plan)]


def _read(rows: int | None, form: str | None, skipped: int | None) -> str:
    parts = [
        f"{rows:,} rows" if rows is not None else "",
        f"read as {form}" if form else "",
        f"{skipped:,} bad rows skipped" if skipped is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _shares(data: Mapping[str, Any]) -> list[str]:
    """How the rows were shared out."""
    seed, pairs = data.get("seed", 0), data.get("pairs", 0)
    dropped = {part: rows for part, rows in data.get("dropped", {}).items() if rows}
    detail = " (" + ", ".join(f"{part}: {rows:,}" for part, rows in dropped.items()) + ")" if dropped else ""
    prompts = ", ".join(f"{rows:,}" for rows in data.get("prompts", []))
    return [
        f"seed labels: {seed:,}" + (f" ({seed / pairs:.1%} of the pairs)" if seed and pairs else ""),
        f"prompts per iteration: {prompts or 'none'} (their labels are not used)",
        f"held out for the evaluation: {data.get('heldout', 0):,} pairs",
        f"rows dropped because their prompt stands in another part: {data.get('dropped_rows', 0):,}{detail}",
    ]


def _judge(judge: Mapping[str, Any]) -> str:
    """How the answers were labelled, from the recipe's section."""
    words = JUDGES.get(judge["type"], f"by the judge `{judge['type']}`")
    model = (judge.get("endpoint") or {}).get("model") or judge.get("model_name_or_path")
    if judge.get("peers"):
        words += ", keeps those whose labels a second chain of policies, trained beside it, doubts least (co-teaching)"
    return words.format(
        policy=POLICIES.get(judge.get("policy", "previous"), "a model from outside the run"),
        reference=REFERENCES.get(judge.get("reference", ""), "a reference model"),
        model=f"`{model}`" if model else "the model itself",
    )


def _rounds(found: Mapping[str, Manifest]) -> list[list[str]]:
    """The iterations as a table: a heading, then a line per figure and a column per iteration."""
    columns = [
        {"iteration": str(i), "labelled pairs": LARGE_COUNT.format(found[f"judge-{i}"].rows), **facts}
        for i, facts in iterations(found).items()
    ]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    return [[label, *(column.get(label, "") for column in columns)] for label in labels]


def _caveats(plan: Plan, found: Mapping[str, Manifest]) -> list[str]:
    """What a reader has to know to take the figures for what they are worth."""
    assert isinstance(plan.recipe, Recipe)
    evaluations = {name: manifest for name, manifest in found.items() if manifest.kind == "evaluate"}
    if not evaluations:
        return ["Nothing was measured on held-out rows.", *_warnings(plan.recipe, found)]
    evaluation = plan.recipe.evaluation
    rated = any("win_rate_vs_init" in manifest.metrics for manifest in evaluations.values())
    accuracies = [m.metrics["heldout_accuracy"] for m in evaluations.values() if "heldout_accuracy" in m.metrics]
    stop = early_stop(plan.recipe, found)
    heldout = found["data"].metrics.get("heldout") if "data" in found else None
    return [
        *([WIN_RATES.get(evaluation.reward, f"The win rates are judged by `{evaluation.reward}`.")] if rated else []),
        *(_win_rate_terms(next(iter(evaluations.values())).rows) if rated else []),
        *(
            [
                "*Label accuracy* is how often the implicit reward of the policy against pi_init prefers what the "
                f"held-out labels prefer{f' ({heldout:,} pairs)' if heldout else ''}."
            ]
            if accuracies
            else []
        ),
        *(f"{text[0].upper()}{text[1:]}." for text in answers(found)),
        *_warnings(plan.recipe, found),
        *([f"The run {stop}."] if stop else []),
        f"One run with one seed ({plan.recipe.seed}): figures move by several points from seed to seed.",
    ]


def _win_rate_terms(answers: int) -> list[str]:
    return [
        f"A *win rate* is against the answers of pi_init to the same held-out prompts ({answers:,} answers, a tie "
        "counts one half); *at equal length* takes the effect of the length out."
    ]


def _warnings(recipe: Recipe, found: Mapping[str, Manifest]) -> list[str]:
    return [f"{text[0].upper()}{text[1:]}." for text in warnings(recipe, found)]


def versions(found: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    """Every library with its version; where stages differ, or were begun under another, with the stages of each."""
    names = list(dict.fromkeys(name for manifest in found.values() for name in manifest.versions))
    result = []
    for name in names:
        stages: dict[str, list[str]] = {}
        for stage, manifest in found.items():
            if name in manifest.versions:
                begun = f", begun under {manifest.begun_with[name]}" if name in manifest.begun_with else ""
                stages.setdefault(manifest.versions[name] + begun, []).append(stage)
        one = len(stages) == 1
        words = [version if one else f"{version} ({', '.join(users)})" for version, users in stages.items()]
        result.append((name, "; ".join(words)))
    return result


def _local(plan: Plan, public: Mapping[str, Any]) -> list[str]:
    """What is needed to repeat the run and is on no Hub: names of the files and folders."""
    values = [value for stage in plan.stages for value in stage.inputs.values()]
    names = [last_part(value.location) for value in values if isinstance(value, External) and is_local(value)]
    judge = public["judge"]
    templates = [public["model"]["chat_template"], judge.get("chat_template"), judge.get("prompt")]
    return list(dict.fromkeys([*names, *filter(None, templates)]))
