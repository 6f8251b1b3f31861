"""Stages that need not run: their results are in this run, or in another run of the same runs_dir."""

import sys
from collections.abc import Sequence

from spa_recipes.errors import DataError
from spa_recipes.plan import Plan, Stage
from spa_recipes.run.executors import vllm_processes_of
from spa_recipes.run.reporter import Reporter
from spa_recipes.run.rundir import RunDir, find_reusable, owned_by_others
from spa_recipes.state.patience import size_of
from spa_recipes.state.stagedir import MANIFEST, Manifest, StageDir, adopt
from spa_recipes.state.versions import in_words, library_versions, others


def finished(plan: Plan, run: RunDir, reporter: Reporter, stage: Stage) -> Manifest:
    """The manifest of a stage in a run that cannot be written; DataError if it is damaged or would have to run."""
    folder = run.stage_dir(stage, plan)
    manifest = folder.manifest()
    problems = folder.problems(deep=True) if size_of(folder.path / MANIFEST) is not None else []
    if manifest is None or problems or not run.is_done(stage, plan):
        left = f"is damaged ({problems[0]})" if problems else "is still to be done"
        raise DataError(
            f"{stage.id} {left}, and nothing can be written there",
            where=str(run.path),
            fix="make the folder writable, or copy it to another place",
        )
    reporter.reused(stage, manifest, adopted=False)
    return manifest


def reuse(plan: Plan, run: RunDir, reporter: Reporter, stage: Stage) -> Manifest | None:
    """The stage's manifest if it need not run: done in this run, or in another run of the same runs_dir.

    Raises:
        TryAgainError: what is there cannot be read; only what was read and is different counts as damaged.
    """
    folder = run.stage_dir(stage, plan)
    manifest = folder.manifest()
    if manifest is not None or size_of(folder.path / MANIFEST) is not None:
        problems = folder.problems(deep=True) or _missed(plan, run, stage)
        if manifest is not None and manifest.key == stage.key and not problems:
            reporter.reused(stage, manifest, adopted=False)
            return manifest
        _set_aside(folder, run, reporter, stage, problems)
    found = find_reusable(run.path.parent, stage, run, plan.recipe.storage.reuse)
    if found is None or folder.path.exists():
        return None
    name, source = found
    adopt(source, folder, name)
    adopted = folder.manifest()
    assert adopted is not None
    run.log_event("stage adopted", stage=stage.id, source=name)
    reporter.reused(stage, adopted, adopted=True)
    if (note := _other_libraries(plan, stage, adopted)) is not None:
        run.log_event("notice", stage=stage.id, text=note)
        reporter.noticed(stage, note)
    return adopted


def set_damaged_aside(plan: Plan, run: RunDir, reporter: Reporter, stages: Sequence[Stage]) -> None:
    """Where weights were freed, look at all stages before the first one begins.

    A freed model has to be made again if something that was made from it is damaged, and it comes first in the plan.
    """
    manifests = [run.stage_dir(stage, plan).manifest() for stage in stages]
    if not any(manifest is not None and manifest.pruned for manifest in manifests):
        return
    for stage, manifest in zip(stages, manifests, strict=True):
        folder = run.stage_dir(stage, plan)
        if manifest is not None and (problems := folder.problems(deep=True)):
            _set_aside(folder, run, reporter, stage, problems)


def _set_aside(folder: StageDir, run: RunDir, reporter: Reporter, stage: Stage, problems: list[str]) -> None:
    aside = folder.set_aside()
    run.log_event("stage damaged", stage=stage.id, problems=problems, aside=aside.name)
    reporter.damaged(stage, problems, aside)


def say_what_others_have(plan: Plan, run: RunDir, reporter: Reporter, stages: Sequence[Stage]) -> None:
    """Say in one line that runs which this user did not start have some of the stages that are done again here."""
    if plan.recipe.storage.reuse == "all":
        return
    runs_dir = run.path.parent
    found = [
        (stage, name)
        for stage in stages
        if not run.is_done(stage, plan)
        and (name := owned_by_others(runs_dir, stage, run)) is not None
        and find_reusable(runs_dir, stage, run, "own", deep=False) is None
    ]
    if found:
        text = (
            f"run {', '.join(sorted({name for _, name in found}))}, which you did not start, has {len(found)} of the "
            "stages: they are done again (storage.reuse: all takes them over)"
        )
        first = found[0][0]
        run.log_event("notice", stage=first.id, text=text)
        reporter.noticed(first, text)


def _other_libraries(plan: Plan, stage: Stage, manifest: Manifest) -> str | None:
    """What to say of a stage that was made with other libraries than the installed ones."""
    vllm = vllm_processes_of(stage, plan.recipe.compute)
    if vllm is not None and vllm.python != sys.executable:
        return None  # it runs in an environment of its own
    now = library_versions()
    found = others(manifest.versions, now)
    if not found:
        return None
    installed = in_words({name: now.get(name, "(none)") for name in found})
    return f"it was made with {in_words(found)}, and the other stages run with {installed}"


def _missed(plan: Plan, run: RunDir, stage: Stage) -> list[str]:
    """Output of a finished stage that was pruned although another stage still has to read it."""
    manifest = run.stage_dir(stage, plan).manifest()
    if manifest is None or not manifest.pruned or run.is_done(stage, plan):
        return []
    return [f"output/{name} was freed by `spa gc --models` and is needed again" for name in manifest.pruned]
