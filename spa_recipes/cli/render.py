"""What the commands print: progress while a run works, the summary after it, plans, statuses, errors."""

import json
import sys
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from spa_recipes import api
from spa_recipes.data.rows import read_jsonl
from spa_recipes.errors import RecipeError, SpaError
from spa_recipes.estimates import human_bytes, human_count, human_seconds, needs
from spa_recipes.plan import Plan, Stage
from spa_recipes.recipe.schema import Recipe
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.run.decay import judge_decay
from spa_recipes.run.disk import free_bytes
from spa_recipes.run.overview import disk_usage, overviews
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.runner import Outcome
from spa_recipes.state import usage
from spa_recipes.state.stagedir import Manifest

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
PLAIN_WIDTH = 110
FIGURES = {
    "pairs": "pairs",
    "seed": "seed labels",
    "heldout": "held out",
    "skipped": "bad rows skipped",
    "skipped_prompts": "bad rows of the prompts skipped",
    "dropped_rows": "dropped for a prompt of another part",
    "mean_tokens": "tokens/answer",
    "length_cut": "cut off",
    "identical": "identical",
    "empty": "empty",
    "logp_difference_max": "kept log-probs off by at most",
    "questions": "questions",
    "unparsed": "without a verdict",
    "too_long": "too long",
    "verdict_ties": "verdict a tie",
    "order_disagreement": "orders disagree",
    "first_place": "for the first place",
    "accuracy_vs_gold": "judge accuracy",
    "agreement_with_labels": "agreement",
    "mean_margin": "margin",
    "length_gap": "chosen longer by",
    "length_penalty": "length penalty",
    "dropped_identical": "dropped as identical",
    "dropped_empty": "dropped as empty",
    "ties": "ties",
    "train_loss": "loss",
    "replayed_pairs": "replayed",
    "flagged_of_all": "flagged",
    "flagged_judge_margin": "flagged margin",
    "flag_precision": "flagged wrong",
    "flag_recall": "of all wrong ones flagged",
    "wrong_base_rate": "wrong",
    "mean_reward": "reward",
    "win_rate_vs_init": "win rate",
    "length_controlled_win_rate_vs_init": "at equal length",
    "heldout_accuracy": "label accuracy",
    "alpaca_win_rate": "AlpacaEval win rate",
    "alpaca_length_controlled": "length-controlled",
    "mt_bench_score": "MT-Bench",
    "mt_bench_turn_1": "turn 1",
    "mt_bench_turn_2": "turn 2",
    "unrated": "without a rating",
    "pairwise_win_rate": "win rate",
    "pairwise_low": "from",
    "pairwise_high": "to",
    "prompts_cut": "prompts cut",
    "without_preference": "without a preference",
    "resumed_from_step": "went on from step",
}
"""Figures worth a place in a summary line, and what people call them."""
SHARES = frozenset(
    {
        "length_cut",
        "identical",
        "empty",
        "unparsed",
        "verdict_ties",
        "order_disagreement",
        "first_place",
        "accuracy_vs_gold",
        "agreement_with_labels",
        "flagged_of_all",
        "flag_precision",
        "flag_recall",
        "wrong_base_rate",
        "win_rate_vs_init",
        "length_controlled_win_rate_vs_init",
        "heldout_accuracy",
        "alpaca_win_rate",
        "alpaca_length_controlled",
        "pairwise_win_rate",
        "pairwise_low",
        "pairwise_high",
    }
)
SILENT_AT_ZERO = frozenset(
    {
        "skipped",
        "skipped_prompts",
        "dropped_rows",
        "dropped_identical",
        "dropped_empty",
        "identical",
        "empty",
        "ties",
        "unparsed",
        "too_long",
        "verdict_ties",
        "length_penalty",
        "replayed_pairs",
        "resumed_from_step",
        "unrated",
        "prompts_cut",
        "without_preference",
    }
)


def print_errors(error: SpaError) -> None:
    """One line per problem on standard error."""
    for problem in [error, *getattr(error, "others", [])]:
        err.print(f"[bold red]error:[/] {escape(str(problem))}", soft_wrap=True)


def figures(manifest: Manifest) -> str:
    """The key figures of a stage on one line."""
    parts = [f"read as {manifest.metrics['form']}"] if "form" in manifest.metrics else []
    for name, label in FIGURES.items():
        value = manifest.metrics.get(name)
        if isinstance(value, int | float) and not (value == 0 and name in SILENT_AT_ZERO):
            parts.append(f"{label} {_figure(name, value)}")
    return ", ".join(parts)


def _figure(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value}" if isinstance(value, int) else f"{value:.3g}"


class PlainReporter:
    """Tells what happens: a progress bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> "PlainReporter":
        if out.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]} {task.fields[note]}"),
                TimeElapsedColumn(),
                console=out,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        out.print(text, soft_wrap=True)

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """See `Reporter`."""
        where = f"from run {manifest.reused_from}" if adopted else "done before"
        self.say(f"  [cyan]=[/] {stage.id:<18} {where}")

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """See `Reporter`."""
        self.say(f"  [yellow]![/] {stage.id:<18} {escape('; '.join(problems))}: set aside as {aside.name}, done again")

    def started(self, stage: Stage, attempt: int) -> None:
        """See `Reporter`."""
        note = f" (attempt {attempt})" if attempt > 1 else ""
        if self._bar is None:
            self.say(f"  > {stage.id:<18} {escape(stage.role)}{note}")
        else:
            self._task = self._bar.add_task(f"{stage.id}{note}", total=None, unit="", note="")

    def noticed(self, stage: Stage, text: str) -> None:
        """See `Reporter`."""
        self.say(f"  [yellow]![/] {stage.id:<18} {escape(text)}")

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """See `Reporter`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, unit=unit, note=note)

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See `Reporter`."""
        if self._bar is not None:
            self._bar.remove_task(self._task)
        facts = escape(figures(manifest))
        self.say(f"  [green]+[/] {stage.id:<18} {human_seconds(manifest.seconds):>8}  {facts}")


class RunReporter(PlainReporter):
    """The same for a run: says first what will run and where."""

    def __init__(self, prepared: api.Prepared) -> None:
        super().__init__()
        left = len(api.unfinished(prepared.plan, prepared.run))
        total = len(prepared.plan.stages)
        begun = "" if left == total else f", {total - left} of {total} stages done before"
        self.say(f"[bold]{prepared.plan.recipe.name}[/] in {prepared.run.path}{begun}")


def print_summary(prepared: api.Prepared, outcome: Outcome) -> None:
    """What happened, where it is, what to do next."""
    plan, run = prepared.plan, prepared.run
    table = Table(title=f"{run.name}: {human_seconds(outcome.seconds)}", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("stage", "left"), ("rows", "right"), ("tokens", "right"), ("time", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("figures", overflow="fold")
    for name, manifest in outcome.manifests.items():
        table.add_row(
            name,
            human_count(manifest.rows),
            human_count(manifest.tokens) if manifest.tokens else "",
            "reused" if manifest.reused_from else human_seconds(manifest.seconds),
            escape(figures(manifest)),
        )
    console = out if out.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)
    console.print()
    console.print(table)
    _print_judge_audit(outcome.manifests)
    _print_benchmarks(outcome.manifests)
    if outcome.decay is not None:
        out.print(f"[yellow]{escape(str(outcome.decay))}[/]", soft_wrap=True)
    _print_samples(plan, run)
    _print_places(prepared, outcome)


def _print_judge_audit(manifests: dict[str, Manifest]) -> None:
    """The win rates, and a judge that gets worse in words."""
    wins = _series(manifests, "evaluate-", "win_rate_vs_init")
    if wins:
        out.print("\nwin rate against pi_init: " + ", ".join(f"pi_{i} {rate:.1%}" for i, rate in wins), soft_wrap=True)
    for kind, measure, words in (
        ("judge-", "accuracy_vs_gold", "its own samples"),
        ("evaluate-", "heldout_accuracy", "held-out labelled pairs"),
    ):
        series = _series(manifests, kind, measure)
        if not series:
            continue
        judges = [(int(i) - 1 if kind == "judge-" else i, accuracy) for i, accuracy in series]
        listing = ", ".join(f"pi_{i} {accuracy:.1%}" for i, accuracy in judges)
        out.print(f"judge accuracy on {words}: {listing}", soft_wrap=True)
        if series[-1][1] < series[0][1]:
            out.print(
                f"[yellow]  it fell from {series[0][1]:.1%} to {series[-1][1]:.1%}: "
                "later labels are less to be trusted[/]",
                soft_wrap=True,
            )


def _print_benchmarks(manifests: dict[str, Manifest]) -> None:
    for line in benchmark_lines(manifests):
        out.print(escape(line), soft_wrap=True)


def _series(manifests: dict[str, Manifest], kind: str, measure: str) -> list[tuple[str, float]]:
    """(iteration, value) of a figure in the order of the stages."""
    return [
        (name.removeprefix(kind), manifest.metrics[measure])
        for name, manifest in manifests.items()
        if name.startswith(kind) and measure in manifest.metrics
    ]


def _print_samples(plan: Plan, run: RunDir) -> None:
    """Answers to the same held-out prompts, before and after."""
    assert isinstance(plan.recipe, Recipe)
    done = [s for s in plan.stages if s.kind == "evaluate" and run.is_done(s, plan)]
    count = plan.recipe.evaluation.num_samples
    if len(done) < 2 or not count:
        return
    before, after = (read_jsonl(run.stage_dir(s, plan).output / "samples.jsonl") for s in (done[0], done[-1]))
    shown = set[str]()
    for old, new in zip(before, after, strict=True):
        if len(shown) == count or old["prompt_id"] in shown:
            continue
        shown.add(old["prompt_id"])
        out.print(f"\n[bold]{escape(_short(old['prompt'][-1]['content']))}[/]", soft_wrap=True)
        for name, sample in ((done[0].id, old), (done[-1].id, new)):
            reward = f" (reward {sample['reward']:+.2f})" if sample["reward"] is not None else ""
            symbol = "pi_" + name.removeprefix("evaluate-")
            out.print(f"  {symbol + reward:<22} {escape(_short(sample['response']))}", soft_wrap=True)


def _short(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _print_places(prepared: api.Prepared, outcome: Outcome) -> None:
    plan, run = prepared.plan, prepared.run
    made = api.final_model(prepared)
    out.print()
    if made is not None:
        out.print(f"model:  {run.final if outcome.complete else made}", soft_wrap=True)
    for stage in plan.stages:
        if stage.kind == "judge" and run.is_done(stage, plan):
            out.print(f"pairs:  {run.stage_dir(stage, plan).output / 'pairs.jsonl'}", soft_wrap=True)
    if not outcome.complete:
        left = api.unfinished(plan, run)
        out.print(
            f"next:   `spa resume {run.path}` goes on with {left[0].id} ({len(left)} stages left)", soft_wrap=True
        )
    elif made is not None and plan.initial_policy is not None:
        reference = run.input_path(plan.initial_policy, plan)
        out.print(
            f"next:   label pairs of your own with `spa judge --policy {run.final} --reference {reference} "
            f"--pairs FILE --out FILE`, or see `spa status {run.name}`",
            soft_wrap=True,
        )


def print_judged(path: Path, manifest: Manifest) -> None:
    """What `spa judge` did."""
    out.print(f"{manifest.rows} labelled pairs -> {path} ({escape(figures(manifest))})", soft_wrap=True)
    if "labelled" in manifest.metrics:
        agreement = manifest.metrics["agreement_with_labels"]
        out.print(f"agreement with the {manifest.metrics['labelled']} labels that were there: {agreement:.1%}")
    out.print(
        f'next:    `datasets.load_dataset("json", data_files="{path}")`, or `trl dpo --dataset_name …`', soft_wrap=True
    )


def print_plan(prepared: api.Prepared, *, diff: bool) -> None:
    """Every stage with its inputs, key, state and needs."""
    plan, run = prepared.plan, prepared.run
    recipe = plan.recipe
    out.print(f"[bold]{recipe.name}[/] in {run.path}: {len(plan.stages)} stages", soft_wrap=True)
    if recipe.model.trust_remote_code:
        out.print("[yellow]runs Python code that comes with the model (model.trust_remote_code)[/]")
    disk, scratch = 0, 0
    for view in api.plan_view(prepared):
        stage, need = view.stage, needs(view.stage, plan)
        if view.state != "done":
            disk, scratch = disk + (need.disk or 0), max(scratch, need.scratch or 0)
        mark = {"done": "[green]+[/]", "to do": "[yellow]o[/]"}.get(view.state, "[cyan]=[/]")
        out.print(f"\n{mark} [bold]{stage.id}[/]  {escape(stage.role)}", soft_wrap=True)
        for name, value in stage.inputs.items():
            out.print(f"    {name:<16} {escape(str(value))}", soft_wrap=True)
        out.print(f"    {'key':<16} {stage.key[:16]}  {view.state}", soft_wrap=True)
        if view.why and (diff or view.why != "never run"):
            out.print(f"    {'why':<16} {escape(view.why)}", soft_wrap=True)
        sizes = {
            "rows": human_count(stage.rows),
            "tokens <=": human_count(need.tokens),
            "memory": human_bytes(need.memory),
            "disk <=": human_bytes(need.disk),
            "while it runs <=": human_bytes(need.scratch),
        }
        known = ", ".join(f"{name} {value}" for name, value in sizes.items() if value != "-")
        if known:
            out.print(f"    {'needs':<16} {known}", soft_wrap=True)
    free = human_bytes(free_bytes(run.path.absolute()))
    out.print(
        f"\ndisk:   {human_bytes(disk)} for results and up to {human_bytes(scratch)} for checkpoints while a stage "
        f"trains; {free} are free",
        soft_wrap=True,
    )
    out.print("memory: weights, gradients, optimizer over all devices; activations come on top", soft_wrap=True)


def print_recipe(prepared: api.Prepared) -> None:
    """The recipe with everything that it extends and all defaults, as a recipe."""
    whole = prepared.plan.recipe.model_dump(mode="json")
    sys.stdout.write(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=110))


def print_plan_json(prepared: api.Prepared) -> None:
    """The plan for scripts."""
    stages = [
        {
            "id": view.stage.id,
            "kind": view.stage.kind,
            "role": view.stage.role,
            "key": view.stage.key,
            "inputs": {name: str(value) for name, value in view.stage.inputs.items()},
            "rows": view.stage.rows,
            "state": view.state,
            "why": view.why,
        }
        for view in api.plan_view(prepared)
    ]
    sys.stdout.write(json.dumps(stages, indent=2, ensure_ascii=False) + "\n")


def print_runs(runs_dir: Path) -> None:
    """A line per run: how far, how large, since when, and what it came to."""
    runs = overviews(runs_dir)
    if not runs:
        out.print(f"no runs in {runs_dir}; start one with `spa run RECIPE`")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "stages", "state", "size", "last touched", ""):
        table.add_column(name, overflow="fold")
    for run in runs:
        touched = f"{datetime.fromtimestamp(run.touched):%Y-%m-%d %H:%M}" if run.touched else "-"
        size = human_bytes(sum(run.files.values()))
        table.add_row(escape(run.name), run.stages, run.state, size, touched, escape(run.note))
    console = out if out.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)
    console.print(table)
    console.print(f"{human_bytes(disk_usage(runs))} in all; files that runs share count once")


def print_run_status(name: str, runs_dir: Path) -> None:
    """The stages of a run with their figures."""
    run = api.find_run(name, runs_dir)
    if run.recipe() is None:
        raise RecipeError("no run is there", where=str(run.path))
    prepared = api.prepare_resume(str(run.path), runs_dir)
    manifests = api.manifests(prepared.plan, run)
    out.print(f"[bold]{run.name}[/] in {run.path}" + (f", held by {holder}" if (holder := run.holder()) else ""))
    for stage in prepared.plan.stages:
        state = run.status(stage, prepared.plan)
        manifest = manifests.get(stage.id)
        facts = figures(manifest) if manifest else ""
        if manifest and manifest.pruned:
            facts = ", ".join(filter(None, [facts, "weights freed by `spa gc`"]))
        seconds = human_seconds(manifest.seconds) if manifest else ""
        size = human_bytes(used) if (used := usage.size(run.stage_dir(stage, prepared.plan).path)) else ""
        out.print(f"  {stage.id:<18} {state:<12} {seconds:>10} {size:>8}  {escape(facts)}", soft_wrap=True)
        if state == "failed":
            log = run.stage_dir(stage, prepared.plan).attempts()[-1] / "worker.log"
            out.print(f"  {'':<18} log: {log}", soft_wrap=True)
    _print_judge_audit(manifests)
    _print_benchmarks(manifests)
    decay = judge_decay(prepared.plan, manifests)
    if decay is not None:
        out.print(f"[yellow]{escape(str(decay))}[/]", soft_wrap=True)
    left = api.unfinished(prepared.plan, run)
    if left:
        out.print(f"next:    `spa resume {run.path}` goes on with {left[0].id}", soft_wrap=True)
