"""Labels that `spa label RUN` left in a run's folder, and what becomes of them when the run goes on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.reading import is_file
from spa_recipes.units import count_of

_NAME = re.compile(r"labels-([0-9]+)\.jsonl")


def labels_of(run: RunDir, iteration: int) -> Path:
    """The file of a person's labels of an iteration's pairs."""
    return run.path / f"labels-{iteration}.jsonl"


class Labels(NamedTuple):
    """Labels of a run that its recipe does not have yet.

    Attributes:
        override: sets `data.added` so that the recipe has them; None where there is nothing to add.
        told: lines for people.
    """

    override: str | None
    told: list[str]


def new_labels(run: RunDir) -> Labels:
    """The labels in a run's folder that join the seed labels of the iterations to come.

    Raises:
        RecipeError: the run has no recipe that can be read.
    """
    recipe = run.recipe()
    files = sorted(_files(run))
    if recipe is None or not files:
        return Labels(None, [])
    known = {Path(part.name).resolve() for labels in recipe.data.added for part in labels.parts}
    added, told = [], []
    for iteration, path in files:
        count = _count(path)
        if path.resolve() in known or not count:
            continue
        words = f"{count_of(count, 'label')} of {path}"
        if iteration >= recipe.iterations:
            told.append(f"not added, as no iteration comes after {iteration} (data.prompts_per_iteration): {words}")
            continue
        added.append({"source": str(path), "after": iteration})
        told.append(f"added to the seed labels from iteration {iteration + 1} on (data.added): {words}")
    if not added:
        return Labels(None, told)
    before = [labels.model_dump(mode="json", exclude_defaults=True) for labels in recipe.data.added]
    return Labels(f"data.added={json.dumps([*before, *added])}", told)


def done_again(plan: Plan, run: RunDir) -> list[str]:
    """Ids of the stages that are finished under the stored plan, and under this plan are not."""
    try:
        finished = run.done(run.planned())
    except RecipeError:
        return []
    return [stage.id for stage in plan.stages if stage.id in finished and not run.is_done(stage, plan)]


def _files(run: RunDir) -> Iterator[tuple[int, Path]]:
    for path in run.path.glob("labels-*.jsonl"):
        if (found := _NAME.fullmatch(path.name)) and is_file(path):
            yield int(found[1]), path


def _count(path: Path) -> int:
    """Rows of a labels file that are labels."""
    from spa_recipes.data.rows import read_lines

    return sum(1 for line in read_lines(path) if line.value is not None and line.value.get("status") == "preferred")
