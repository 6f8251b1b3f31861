"""Collects what a run has on disk and writes it as one HTML page."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from markupsafe import Markup

from spa_recipes import __version__
from spa_recipes.data.rows import RowT, read_jsonl, read_rows
from spa_recipes.data.stage_rows import JudgedPairRow, JudgmentRow, SampleRow, TraceRow
from spa_recipes.errors import RecipeError
from spa_recipes.plan import MODEL, Plan, Stage
from spa_recipes.recipe.schema import Recipe
from spa_recipes.report.answers import answers
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.report.card import versions
from spa_recipes.report.charts import Series, histogram, line_chart
from spa_recipes.report.figures import LARGE_COUNT, TRAINED, columns, iterations
from spa_recipes.report.people import agreements
from spa_recipes.report.policies import Line, as_table, lines, text_of
from spa_recipes.report.samples import shown_samples
from spa_recipes.report.trends import CHARTS, CURVES, series
from spa_recipes.report.warnings import warnings
from spa_recipes.run.intact import remarks
from spa_recipes.run.labels import labels_of
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.stagedir import Manifest
from spa_recipes.units import human_count, human_seconds

EXAMPLES = 4
"""Flagged pairs shown per iteration, and prompts with sample answers."""


BAR = 110
"""Pixels of the bar of the stage that took longest."""


class StageRow(NamedTuple):
    """A stage in the table of the plan; `width` is that of the bar of its time, in pixels."""

    id: str
    role: str
    state: str
    rows: str
    seconds: str
    width: float


class Iteration(NamedTuple):
    """What an iteration labelled: answers by the judge, flags by the detector."""

    number: int
    facts: dict[str, str]
    flagged: list[dict[str, Any]]


def write_report(plan: Plan, run: RunDir, found: Mapping[str, Manifest], path: Path) -> None:
    """Write the page.

    Raises:
        RecipeError: nothing has run yet, or the file cannot be written.
    """
    if not found:
        raise RecipeError("nothing is finished yet", where=str(run.path), fix=f"`{run.resume_command}` first")
    page = render(plan, run, found)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"cannot be written ({error.strerror})", where=str(path), fix="choose another --out"
        ) from None


def render(plan: Plan, run: RunDir, found: Mapping[str, Manifest]) -> str:
    """The page as text."""
    assert isinstance(plan.recipe, Recipe)
    files = _Files(plan, run, found)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spa_recipes.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policies = lines(plan, run.name, found)
    headings, rows = as_table(policies)
    newest = max(manifest.finished_at for manifest in found.values())
    return environment.get_template("template.html").render(
        name=run.name,
        recipe=plan.recipe,
        finished=datetime.fromisoformat(newest).strftime("%Y-%m-%d %H:%M"),
        state="finished" if len(found) == len(plan.stages) else "unfinished, last stage",
        headline=_headline(policies),
        answers=answers(found),
        remarks=remarks(run),
        warnings=warnings(plan.recipe, found),
        policy_headings=headings,
        policies=rows,
        stages=_stage_rows(plan, run, found),
        total_seconds=human_seconds(sum(manifest.seconds for manifest in found.values())),
        curves=_curves(files),
        trends=_trends(found),
        benchmarks=benchmark_lines(found),
        margins=_margins(files),
        iterations=_iterations(files),
        samples=(samples := _samples(files)).examples,
        samples_rule=samples.rule,
        recipe_text=yaml.safe_dump(plan.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        versions=versions(found),
        version=__version__,
    )


class _Files:
    """Reads the outputs of finished stages; a file that was pruned reads as empty."""

    def __init__(self, plan: Plan, run: RunDir, found: Mapping[str, Manifest]) -> None:
        self.plan, self.run, self.found = plan, run, found

    def stages(self, *kinds: str) -> Iterator[Stage]:
        """Finished stages of these kinds, in the plan's order."""
        return (stage for stage in self.plan.stages if stage.kind in kinds and stage.id in self.found)

    def rows(self, stage_id: str, name: str, kind: type[RowT]) -> list[RowT]:
        """Rows of a JSON Lines file in a stage's output."""
        path = self._path(stage_id, name)
        return [] if path is None else read_rows(path, kind)

    def log(self, stage_id: str) -> list[dict[str, Any]]:
        """The log of a stage that trains: figures by name, with their step."""
        path = self._path(stage_id, f"{MODEL}/training_log.jsonl")
        return [] if path is None else read_jsonl(path)

    def _path(self, stage_id: str, name: str) -> Path | None:
        if stage_id not in self.found:
            return None
        path = self.run.stage_dir(self.plan.stage(stage_id), self.plan).output / name
        return path if path.is_file() else None

    def iterations(self) -> range:
        """Numbers of the recipe's iterations."""
        assert isinstance(self.plan.recipe, Recipe)
        return range(1, self.plan.recipe.iterations + 1)


def _headline(policies: Sequence[Line]) -> str:
    _, shown = columns()["win_rate"]
    wins = [f"{line['policy']} {text_of(line, 'win_rate', shown)}" for line in policies if line["win_rate"] is not None]
    return "Win rate against pi_init, with its 95 % interval: " + ", ".join(wins) if wins else ""


def _stage_rows(plan: Plan, run: RunDir, found: Mapping[str, Manifest]) -> list[StageRow]:
    longest = max(manifest.seconds for manifest in found.values()) or 1.0
    rows = []
    for stage in plan.stages:
        manifest = found.get(stage.id)
        if manifest is None:
            rows.append(StageRow(stage.id, stage.role, run.status(stage, plan), "", "", 0.0))
            continue
        state = f"from {manifest.reused_from}" if manifest.reused_from else "done"
        width = round(BAR * manifest.seconds / longest, 1)
        seconds = human_seconds(manifest.seconds)
        rows.append(StageRow(stage.id, stage.role, state, human_count(manifest.rows), seconds, width))
    return rows


def _curves(files: _Files) -> list[tuple[str, list[Markup]]]:
    """The curves of every training over its steps."""
    result = []
    for stage in files.stages(*TRAINED):
        log = files.log(stage.id)
        charts = []
        for y, curves in CURVES.items():
            drawn = [
                Series(label, [(float(line["step"]), float(line[name])) for line in log if name in line])
                for name, label in curves.items()
            ]
            charts.append(line_chart(drawn, x="optimizer step", y=y))
        if shown := [chart for chart in charts if chart]:
            result.append((f"{stage.id}: {stage.role}", shown))
    return result


def _trends(found: Mapping[str, Manifest]) -> list[Markup]:
    """How the policies and their judges develop over the iterations."""
    charts = [
        line_chart([Series(trend.label, series(found, trend)) for trend in chart.trends], x=chart.x, y=chart.y)
        for chart in CHARTS
    ]
    return [chart for chart in charts if chart]


def _margins(files: _Files) -> list[Markup]:
    """What judges and detectors saw: a distribution per iteration."""
    judged = {i: files.rows(f"judge-{i}", "judgments.jsonl", JudgmentRow) for i in files.iterations()}
    traces = {i: files.rows(f"refine-{i}", f"{MODEL}/pairs_trace.jsonl", TraceRow) for i in files.iterations()}
    assert isinstance(files.plan.recipe, Recipe)
    implicit = files.plan.recipe.judge.type == "implicit_reward"
    charts = [
        histogram(
            [(f"iteration {i}", [row["margin"] for row in rows]) for i, rows in judged.items()],
            x="implicit-reward margin of the judge" if implicit else "reward margin of the judge",
        ),
        histogram(
            [(f"iteration {i}", [row["p_chosen"] for row in rows]) for i, rows in judged.items()],
            x="p(chosen > rejected) of the judge",
        ),
        histogram(
            [(f"iteration {i}", [row["p_detect"] for row in rows]) for i, rows in traces.items()],
            x="p~ of the detector in training",
        ),
    ]
    return [chart for chart in charts if chart]


def _iterations(files: _Files) -> list[Iteration]:
    return [
        Iteration(
            i,
            {
                "pairs": LARGE_COUNT.format(files.found[f"judge-{i}"].rows),
                **facts,
                **agreements(labels_of(files.run, i)),
            },
            _flagged(files, i),
        )
        for i, facts in iterations(files.found).items()
    ]


def _flagged(files: _Files, i: int) -> list[dict[str, Any]]:
    """The pairs that the detector doubted most, with their texts."""
    trace = [row for row in files.rows(f"refine-{i}", f"{MODEL}/pairs_trace.jsonl", TraceRow) if row["flagged"]]
    doubted = sorted(trace, key=lambda row: row["p_detect"])[:EXAMPLES]
    pairs, judged = (
        files.rows(f"judge-{i}", "pairs.jsonl", JudgedPairRow),
        files.rows(f"judge-{i}", "judgments.jsonl", JudgmentRow),
    )
    examples = []
    for row in doubted:
        pair, judgment = pairs[row["row"]], judged[row["row"]]
        note = f"p~ {row['p_detect']:.4f}, judge's margin {pair['margin']:.3f}"
        if (gold := judgment["gold"]) is not None:
            note += "; " + _verdict(gold[judgment["chosen"]], gold[judgment["rejected"]])
        examples.append(
            {
                "prompt": pair["prompt"][-1]["content"],
                "chosen": pair["chosen"][-1]["content"],
                "rejected": pair["rejected"][-1]["content"],
                "note": note,
            }
        )
    return examples


def _verdict(chosen: float, rejected: float) -> str:
    if chosen == rejected:
        return "the gold reward finds them equal"
    return "the gold reward agrees with the label" if chosen > rejected else "the gold reward says the label is wrong"


class _Samples(NamedTuple):
    """Prompts with the answers of all policies, and the rule that chose them."""

    examples: list[dict[str, Any]]
    rule: str


def _samples(files: _Files) -> _Samples:
    """Answers of all policies to the same held-out prompts."""
    samples = {
        stage.id.removeprefix("evaluate-"): rows
        for stage in files.stages("evaluate")
        if (rows := files.rows(stage.id, "samples.jsonl", SampleRow))
    }
    if not samples:
        return _Samples([], "")
    by_policy = {name: {row["prompt_id"]: row for row in reversed(rows)} for name, rows in samples.items()}
    every = list(samples.values())
    shown = shown_samples(every[0], every[-1], EXAMPLES)
    first = next(iter(by_policy.values()))
    examples = [
        {
            "prompt": first[prompt]["prompt"][-1]["content"],
            "answers": [
                {"heading": _heading(name, rows[prompt]["reward"]), "text": rows[prompt]["response"]}
                for name, rows in by_policy.items()
                if prompt in rows
            ],
        }
        for prompt in shown.prompt_ids
    ]
    return _Samples(examples, shown.rule)


def _heading(policy: str, reward: float | None) -> str:
    name = policy if policy == "control" else f"pi_{policy}"
    return name if reward is None else f"{name} · reward {reward:+.2f}"
