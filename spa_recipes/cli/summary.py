"""What runs and jobs say at the end: what happened, where it is, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes import api
from spa_recipes.cli.terminal import bold, cut, say, table, yellow
from spa_recipes.data.rows import read_rows
from spa_recipes.data.stage_rows import SampleRow
from spa_recipes.plan import Plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.report import figures
from spa_recipes.report.answers import CONTROL, answers
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.report.figures import PERCENT
from spa_recipes.report.samples import shown_samples
from spa_recipes.report.trends import Trend, series
from spa_recipes.report.warnings import warnings
from spa_recipes.run.intact import remarks
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.stagedir import Manifest
from spa_recipes.units import for_shell, human_count, human_seconds

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe, SampleJob
    from spa_recipes.run.runner import Outcome

WINS = Trend("win rate against pi_init", "evaluate", "win_rate_vs_init")
JUDGES = (
    Trend("judge accuracy on its own samples", "judge", "accuracy_vs_gold", shift=1),
    Trend("judge accuracy on held-out labelled pairs", "evaluate", "heldout_accuracy"),
    Trend("judge reliability on its own samples, by the agreement of members", "reliability", "reliability", shift=1),
)


def print_summary(prepared: api.Prepared, outcome: Outcome) -> None:
    """Print the stages with their figures, the audit of the judge, sample answers, and where everything is."""
    say("", f"{prepared.run.name}: {human_seconds(outcome.seconds)}")
    rows = [
        (
            name,
            human_count(manifest.rows),
            human_count(manifest.tokens) if manifest.tokens else "",
            "reused" if manifest.reused_from else human_seconds(manifest.seconds),
            figures.line(manifest),
        )
        for name, manifest in outcome.manifests.items()
    ]
    say(*table(("stage", "rows", "tokens", "time", "figures"), rows, right=("rows", "tokens", "time")))
    print_results(prepared.plan.recipe, outcome.manifests)
    if outcome.stop is not None:
        say(yellow(str(outcome.stop)))
    for line in remarks(prepared.run):
        say(yellow(line))
    _print_samples(prepared.plan, prepared.run)
    _print_places(prepared, outcome)


def print_results(recipe: AnyRecipe, manifests: Mapping[str, Manifest]) -> None:
    """Print the win rates, the accuracy of the judge, the benchmarks, and what the figures warn of."""
    if wins := series(manifests, WINS):
        rates = [f"pi_{i} {figures.win_rate(manifests[f'{WINS.kind}-{i}'], WINS.name)}" for i, _ in wins]
        say("", f"{WINS.label} (95 % interval): {', '.join(rates)}")
    for judge in JUDGES:
        if numbers := [i for i, _ in series(manifests, judge)]:
            stages = {i: manifests[f"{judge.kind}-{i + judge.shift}"] for i in numbers}
            said = (f"pi_{i} {figures.written(stage, judge.name)}" for i, stage in stages.items())
            say(f"{judge.label}: {', '.join(said)}")
    for text in [*answers(manifests), *benchmark_lines(manifests)]:
        say(text)
    for text in warnings(recipe, manifests) if isinstance(recipe, Recipe) else []:
        say(yellow(f"warning: {text}"))


def _print_samples(plan: Plan, run: RunDir) -> None:
    """Print answers to the same held-out prompts, of the first policy and of the last."""
    assert isinstance(plan.recipe, Recipe)
    done = [s for s in plan.stages if s.kind == "evaluate" and s.id != CONTROL and run.is_done(s, plan)]
    count = plan.recipe.evaluation.num_samples
    if len(done) < 2 or not count:
        return
    before, after = (read_rows(run.stage_dir(s, plan).output / "samples.jsonl", SampleRow) for s in (done[0], done[-1]))
    shown = shown_samples(before, after, count)
    say("", f"sample answers ({shown.rule}):")
    by_prompt = [{row["prompt_id"]: row for row in reversed(rows)} for rows in (before, after)]
    for prompt in shown.prompt_ids:
        old, new = (rows[prompt] for rows in by_prompt)
        say("", bold(_short(old["prompt"][-1]["content"])))
        for name, sample in ((done[0].id, old), (done[-1].id, new)):
            reward = f" (reward {sample['reward']:+.2f})" if sample["reward"] is not None else ""
            symbol = "pi_" + name.removeprefix("evaluate-")
            say(f"  {symbol + reward:<22} {_short(sample['response'])}")


def _short(text: str, limit: int = 300) -> str:
    return cut(" ".join(text.split()), limit)


def _print_places(prepared: api.Prepared, outcome: Outcome) -> None:
    plan, run = prepared.plan, prepared.run
    made = api.final_model(prepared)
    say()
    if made is not None:
        say(f"model:  {run.final if outcome.complete else made}")
    for stage in plan.stages:
        if figures.is_numbered(stage.id, "judge") and run.is_done(stage, plan):
            say(f"pairs:  {run.stage_dir(stage, plan).output / 'pairs.jsonl'}")
    if not outcome.complete:
        ids = [stage.id for stage in outcome.left]
        say(f"left:   {len(ids)} stage{'s' if len(ids) > 1 else ''}: {', '.join(ids)}")
        say(f"next:   `{run.resume_command}` continues with {ids[0]}")
    elif made is not None and plan.initial_policy is not None:
        reference = run.input_path(plan.initial_policy, plan)
        say(
            f"next:   label pairs of your own with `spa judge --policy {for_shell(run.final)} "
            f"--reference {for_shell(reference)} --pairs FILE --out FILE`, or see `spa status {for_shell(run.path)}`"
        )


def print_judged(path: Path, manifest: Manifest) -> None:
    """Print what `spa judge` did."""
    say(f"{manifest.rows} labelled pairs -> {path} ({figures.line(manifest)})")
    if "labelled" in manifest.metrics:
        agreement = PERCENT.format(manifest.metrics["agreement_with_labels"])
        say(f"agreement with the {manifest.metrics['labelled']} labels that were there: {agreement}")
    say(f"next:    `datasets.load_dataset('json', data_files={str(path)!r})`, or `trl dpo --dataset_name …`")


def print_sampled(path: Path, job: SampleJob, manifest: Manifest) -> None:
    """Print what `spa sample` did."""
    prompts = manifest.rows // job.sampling.n
    say(f"{manifest.rows} answers to {prompts} prompts -> {path} ({figures.line(manifest)})")
    if job.sampling.n > 1:
        say(f"next:    label them with `spa judge --pairs {for_shell(path)} --out FILE …`, by a judge of its --help")
