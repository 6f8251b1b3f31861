"""The table of figures: it is the one place where a figure has its name, its label and its format."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.cli.compare import print_comparison
from spa_recipes.cli.status import print_run_status
from spa_recipes.cli.summary import print_summary
from spa_recipes.plan import KINDS
from spa_recipes.report import figures, trends
from spa_recipes.report.figures import HUNDREDTHS, PERCENT, TENTHS, Figure, Shown
from spa_recipes.report.page import render
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.runner import Outcome
from tests.kit import finished_runs
from tests.kit.finished_runs import make_run
from tests.kit.plans import plan_of

SURPRISE = Figure(
    "surprise",
    ("judge",),
    Shown("surprise", PERCENT),
    iteration=Shown("mean surprise of the judge", HUNDREDTHS),
    column=Shown("surprise so far", TENTHS, place=9),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A finished run whose judge measured one more figure, with one more entry in the table and no other change."""
    measured = finished_runs.metrics_of

    def metrics_of(kind: str, number: int) -> dict[str, Any]:
        return measured(kind, number) | ({"surprise": 0.25 * number} if kind == "judge" else {})

    monkeypatch.setattr(finished_runs, "metrics_of", metrics_of)
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, SURPRISE))
    return make_run(tmp_path / "runs" / "mini", plan_of(evaluation={"num_samples": 0}))


def test_a_new_figure_is_in_summary_and_status(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = api.prepare_resume("mini", run.path.parent)
    manifests = run.manifests(prepared.plan)
    print_summary(prepared, Outcome(manifests, left=(), seconds=1.0))
    assert "surprise 25.0%" in capsys.readouterr().out
    print_run_status("mini", run.path.parent)
    assert "surprise 50.0%" in capsys.readouterr().out


def test_a_new_figure_is_in_report_card_and_comparison(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = api.prepare_resume("mini", run.path.parent)
    page = render(prepared.plan, run, run.manifests(prepared.plan))
    card = (run.final / "README.md").read_text()
    print_comparison(["mini"], run.path.parent, as_json=False)
    compared = capsys.readouterr().out
    print_comparison(["mini"], run.path.parent, as_json=True)
    for text in (page, card, compared):
        assert "surprise so far" in text
    assert "<dt>mean surprise of the judge</dt><dd>0.50</dd>" in page
    assert "| mean surprise of the judge | 0.25 | 0.50 |" in card
    assert compared.splitlines()[-1].split()[-1] == "0.4"  # pi_2: the mean over the pairs of both iterations
    assert '"surprise": 0.375' in capsys.readouterr().out


def test_the_names_of_figures_are_unique_and_their_kinds_exist() -> None:
    names = [figure.name for figure in figures.FIGURES]
    assert len(names) == len(set(names))
    assert len({figure.key or figure.name for figure in figures.FIGURES}) == len(names)
    assert {kind for figure in figures.FIGURES for kind in figure.kinds} <= KINDS.keys()
    drawn = [trend for chart in trends.CHARTS for trend in chart.trends]
    known = {(kind, figure.name) for figure in figures.FIGURES for kind in figure.kinds}
    assert {(trend.kind, trend.name) for trend in drawn} <= known


def test_every_figure_is_shown_somewhere() -> None:
    assert all(figure.line or figure.iteration or figure.column for figure in figures.FIGURES)
