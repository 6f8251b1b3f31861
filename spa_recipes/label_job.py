"""Runs `spa label`: a person compares pairs of answers. Importing it loads no heavy library."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spa_recipes import job_output
from spa_recipes.errors import DataError, LockedError, RecipeError
from spa_recipes.label.file import opened
from spa_recipes.label.pairs import Judged, Pair, Source, comparable, pair_of
from spa_recipes.label.session import Session
from spa_recipes.run.labels import labels_of
from spa_recipes.run.rundir import Planned, RunDir

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import SampleJob
    from spa_recipes.run.reporter import Reporter

Pick = Literal["doubted", "random"]
"""Which pairs of a run are shown: those with the smallest margins of its judge, or any."""


def sampled_pairs(job: SampleJob, out: Path, reporter: Reporter) -> Source:
    """Two answers of a model to each prompt, sampled unless they are there.

    The answers stay in `OUT.spa/` beside the labels: the same call goes on, and samples nothing again.

    Raises:
        SpaError: with the exit code of what went wrong.
    """
    from spa_recipes.sample_job import sampled

    if job.sampling.n != 2:
        raise RecipeError("a person compares two answers", where="sampling.n", fix="leave it at 2")
    rows, _ = sampled(job, job_output.work_beside(out), reporter)
    pairs = [pair_of(row["prompt"], (row["responses"][0], row["responses"][1])) for row in rows]
    return _source(pairs, {"model": job.model.model_name_or_path, "name": job.name})


class LastIteration:
    """The last iteration of a run whose answers are judged."""

    def __init__(self, run: RunDir) -> None:
        """Find it.

        Raises:
            RecipeError: no iteration is judged yet. DataError: its files are gone.
        """
        self.run = run
        stages = {stage.id: stage for stage in run.planned()}
        done = run.done([*stages.values()])
        ends = (name.removeprefix("judge-") for name in done if stages[name].kind == "judge")
        judged = [int(end) for end in ends if end.isdigit()]  # the peer's answers are not the run's
        if not judged:
            raise RecipeError(
                "no iteration of the run is judged yet",
                where=str(run.path),
                fix=f"`{run.resume_command} --until judge-1`",
            )
        self.number = max(judged)
        self._files = {
            name: self._output(stages[stage], name)
            for stage, name in (
                (f"judge-{self.number}", "judgments.jsonl"),
                (f"generate-{self.number}", "completions.parquet"),
                ("data", f"prompts-{self.number}.jsonl"),
            )
        }

    @property
    def labels(self) -> Path:
        """Where a person's labels of this iteration are kept unless they say where: in the run's folder."""
        return labels_of(self.run, self.number)

    def pairs(self, pick: Pick, seed: int) -> Source:
        """Pairs of the iteration: those with the smallest margins first, or in an order by chance.

        Raises:
            DataError: a file of the run is damaged.
        """
        from spa_recipes.data.rows import Prompt, read_rows
        from spa_recipes.data.stage_rows import JudgmentRow
        from spa_recipes.data.tables import COMPLETIONS, read_table

        judgments = read_rows(self._files["judgments.jsonl"], JudgmentRow)
        if pick == "doubted":
            judgments.sort(key=lambda row: row["margin"])
        else:
            random.Random(seed).shuffle(judgments)
        prompts = read_rows(self._files[f"prompts-{self.number}.jsonl"], Prompt)
        table = read_table(self._files["completions.parquet"], COMPLETIONS)
        columns = (table[name].to_pylist() for name in ("item", "sample", "text"))
        texts = {(item, sample): text for item, sample, text in zip(*columns, strict=True)}

        def pair(row: JudgmentRow) -> Pair:
            one, other = sorted((row["chosen"], row["rejected"]))
            judged = Judged(int(row["chosen"] == other), row["p_chosen"])
            item = row["item"]
            return pair_of(prompts[item]["prompt"], (texts[item, one], texts[item, other]), judged)

        origin = {"run": self.run.name, "iteration": self.number, "pick": pick}
        return _source([pair(row) for row in judgments], origin)

    def _output(self, stage: Planned, name: str) -> Path:
        folder = self.run.existing(stage)
        path = folder.output / name if folder is not None else self.run.path / name
        if not path.is_file():
            raise DataError("the file is gone", where=str(path), fix=f"make it again: `{self.run.resume_command}`")
        return path


def _source(pairs: Sequence[Pair], origin: dict[str, object]) -> Source:
    """The pairs that a person can choose from.

    Raises:
        DataError: there is none.
    """
    found = comparable(pairs)
    if not found:
        raise DataError(
            f"none of the {len(pairs):,} pairs can be compared: their two answers are equal, or one is empty",
            fix="raise sampling.temperature, or give other prompts",
        )
    return Source(found, origin, dropped=len(pairs) - len(found), total=len(found))


@contextmanager
def session_of(source: Source, out: Path, *, by: str, seed: int, repeats: float) -> Iterator[Session]:
    """A session that writes `out`, which nobody else can write until it ends.

    Raises:
        RecipeError: something else is in its place. LockedError: another `spa label` has it.
        SpaError: it cannot be read or written.
    """
    with _held(out) as check, opened(out) as file:
        session = Session(source, file, by=by, seed=seed, repeats=repeats, check=check)
        try:
            yield session
        finally:
            session.end()


def refuse_output(out: Path) -> None:
    """Find out before anything is sampled that labels cannot be written to `out`.

    Raises:
        RecipeError: it is no labels file, or its folder is not there. LockedError: another `spa label` has it.
    """
    if out.is_dir() or out.name in ("", ".."):
        raise RecipeError("it is a folder", where=str(out), fix="name the file to write")
    if not out.parent.is_dir():
        raise RecipeError("no such folder", where=str(out.parent), fix="make it first")
    if out.exists():
        with _held(out), opened(out):
            pass


@contextmanager
def _held(out: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of a labels file, which is in the folder beside it. Yields a check as `RunDir.locked` does."""
    with ExitStack() as stack:
        try:
            check = stack.enter_context(job_output.work_beside(out).locked())
        except LockedError:
            raise LockedError(
                "another `spa label` writes this file", where=str(out), fix="end that one, or choose another --out"
            ) from None
        yield check
