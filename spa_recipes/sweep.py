"""`spa sweep`: the runs of a sweep, one after another, and the tables that they come to.

Its state is the runs themselves: a run that is there is gone on with or taken as it is, and nothing else is kept. So
the same command goes on, and the same command in a second terminal, or on a second machine with the same disk, takes
runs that the first one leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spa_recipes import api
from spa_recipes.api import Prepared
from spa_recipes.errors import EXIT_CODES, LockedError, RecipeError, SpaError, StageError
from spa_recipes.plan import Plan, Stage
from spa_recipes.recipe.sweep import LoadedSweep, Sweep, Variant, load_sweep, recipe_of, sweep_place
from spa_recipes.report import sweep as tables
from spa_recipes.report.sweep import Compared, Measured
from spa_recipes.run.schedule import unfinished
from spa_recipes.state import atomic
from spa_recipes.state.digests import DigestMemo

if TYPE_CHECKING:
    from spa_recipes.run.consent import Consent
    from spa_recipes.run.executors import Executors
    from spa_recipes.run.reporter import Reporter

LOOK_AGAIN_SECONDS = 2.0
"""While other processes work on all that is left."""


class SweepRun(NamedTuple):
    """A run of a sweep.

    Attributes:
        variants: of which it is the run: those whose recipes are the same, and that look at other policies of it.
    """

    variants: tuple[str, ...]
    seed: int
    prepared: Prepared

    @property
    def name(self) -> str:
        """Its name, which that of the sweep begins."""
        return self.prepared.run.name

    def left(self) -> list[Stage]:
        """Stages that are still to be done."""
        return unfinished(self.prepared.plan, self.prepared.run)

    def done_keys(self) -> set[str]:
        """Keys of the stages that are done."""
        plan, run = self.prepared.plan, self.prepared.run
        return {stage.key for stage in plan.stages if run.is_done(stage, plan)}


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that was read and planned. Its runs are in the order in which they are done: seed by seed."""

    loaded: LoadedSweep
    runs: Sequence[SweepRun]

    @property
    def sweep(self) -> Sweep:
        """What the file says."""
        return self.loaded.sweep

    def of(self, seeds: Sequence[int], variants: Sequence[str]) -> list[SweepRun]:
        """The runs of some seeds and variants."""
        return [run for run in self.runs if run.seed in seeds and set(run.variants) & set(variants)]


class Failure(NamedTuple):
    """A run that did not come to its end, and why."""

    run: str
    error: SpaError


class Tables(NamedTuple):
    """What a sweep came to."""

    measured: list[Measured]
    compared: list[Compared]
    notes: list[str]


@dataclass
class Told:
    """Who is told what happens: the stages of a run, and the sweep's own steps.

    Attributes:
        stages: for each run as it begins, who is told of its stages.
        say: is given a line.
    """

    stages: Callable[[SweepRun, int], Reporter]
    say: Callable[[str], None]


@dataclass
class _Work:
    """What a call of `run_sweep` has begun and met.

    Attributes:
        failed: runs that failed by name.
        broken: stages that failed, with the run in which they did: no other run tries the same again.
        executors: by their settings, so that runs share one import of the libraries.
    """

    failed: dict[str, SpaError] = field(default_factory=dict)
    broken: list[tuple[Stage, str]] = field(default_factory=list)
    executors: dict[str, Executors] = field(default_factory=dict)


def prepare_sweep(path: Path, *, afresh: bool = False) -> PreparedSweep:
    """Read a sweep and plan its runs. Nothing runs.

    With `afresh`, data and models are read again rather than taken for unchanged by their sizes and times.

    Raises:
        RecipeError: the sweep or a recipe of it is wrong. DataError: a local file or model is missing.
    """
    loaded = load_sweep(path)
    _refuse_unknown_metrics(loaded)
    runs: list[SweepRun] = []
    memo: DigestMemo | None = None
    commits: dict[str, str] = {}  # all runs read the same ones
    for seed in loaded.sweep.seeds:
        of_seed: dict[str, SweepRun] = {}
        for variant in loaded.sweep.variants:
            read = recipe_of(loaded, variant, seed)
            folder = api.default_run_dir(read.recipe)
            memo = memo or api.memo_for(folder, afresh=afresh)
            same = read.recipe.model_copy(update={"name": ""}).model_dump_json()
            if same not in of_seed:
                planned = api.prepare_loaded(read, folder, memo, ask=afresh, commits=commits)
                commits |= planned.plan.commits
                of_seed[same] = SweepRun((), seed, planned)
            run = of_seed[same]
            of_seed[same] = run._replace(variants=(*run.variants, variant.name))
            _refuse_unknown_policy(loaded, variant, run.prepared.plan)
        runs += of_seed.values()
    folders = {run.prepared.run.path.parent for run in runs}
    if len(folders) > 1:
        raise RecipeError(
            f"the runs are in several folders ({', '.join(map(str, sorted(folders)))})",
            where=str(path),
            fix="set storage.runs_dir under `set` of the sweep: runs in one folder share stages",
        )
    return PreparedSweep(loaded, runs)


def run_sweep(prepared: PreparedSweep, told: Told, *, consent: Consent, accept: bool = False) -> list[Failure]:
    """Do what is not done yet; a run that fails does not stop the others.

    Args:
        consent: the user's to what the recipes may do; it is asked before the first run begins.
        accept: go on with runs whose recipe the sweep has changed since.

    Raises:
        SpaError: before anything starts, for what is wrong with the inputs of the first seed's runs.
    """
    from spa_recipes.run.preflight import check_inputs

    left = [run for run in prepared.runs if run.left()]
    for run in left:
        consent(run.prepared.plan, run.prepared.run)
    for run in left:
        if run.seed == prepared.sweep.seeds[0]:
            check_inputs(run.prepared.plan, run.prepared.run)
    work = _Work()
    try:
        for seeds, variants in _rounds(prepared, told):
            _do(prepared, prepared.of(seeds, variants), work, told, consent, accept)
    finally:
        for executors in work.executors.values():
            executors.close()
    return [Failure(name, error) for name, error in work.failed.items()]


def failed(failures: Sequence[Failure], runs: int) -> SpaError:
    """The error for a sweep some runs of which failed: with their exit code where all have the same one, else 1."""
    names = ", ".join(failure.run for failure in failures)
    codes = {failure.error.exit_code for failure in failures}
    kind = EXIT_CODES[codes.pop()] if len(codes) == 1 else StageError
    return kind(
        f"{len(failures)} of {runs} runs failed: {names}",
        fix="mend what the lines above say, then run the same command again: it does what is left",
    )


def tables_of(prepared: PreparedSweep) -> Tables:
    """What the runs came to so far, read from the runs."""
    sweep = prepared.sweep
    measured = [_measured(prepared, variant) for variant in sweep.variants]
    measured = [one for one in measured if one.seeds]
    notes = _made_with(prepared)
    lacking = [f"{one.variant.title} has {len(one.seeds)}" for one in measured if len(one.seeds) < len(sweep.seeds)]
    lacking += [f"{v.title} has none" for v in sweep.variants if v.name not in {m.variant.name for m in measured}]
    if lacking:
        notes.append(f"Of {len(sweep.seeds)} seeds, " + ", ".join(lacking) + ".")
    return Tables(measured, tables.compared(sweep, measured), notes)


def _made_with(prepared: PreparedSweep) -> list[str]:
    """When the newest stage of the runs was finished, and with which libraries they were made; nothing without any."""
    from spa_recipes.state.versions import COMPUTING, in_words  # which reads metadata that a plan has no use for

    plans = [(run.prepared.run, run.prepared.plan) for run in prepared.runs]
    found = [manifest for folder, plan in plans for manifest in folder.manifests(plan).values()]
    versions: dict[str, set[str]] = {}
    for manifest in found:
        for name in (*COMPUTING, "spa-recipes"):
            if name in manifest.versions:
                versions.setdefault(name, set()).add(manifest.versions[name])
    words = in_words({name: " and ".join(sorted(numbers)) for name, numbers in versions.items()})
    return [f"{max(manifest.finished_at for manifest in found)[:10]}, {words}."] if found else []


def default_out(sweep: Sweep) -> Path:
    """Folder of a sweep's tables, unless the user names another."""
    return Path("sweeps") / sweep.name


def write_tables(prepared: PreparedSweep, found: Tables, out: Path) -> list[Path]:
    """Write `table.md`, `values.csv`, `differences.csv` and `differences.svg` into a folder."""
    sweep = prepared.sweep
    texts = {
        "table.md": tables.page_markdown(sweep, found.measured, found.compared, found.notes),
        "values.csv": tables.values_csv(sweep.metrics, found.measured),
        "differences.csv": tables.differences_csv(found.compared),
        "differences.svg": tables.figure_svg(sweep, found.compared),
    }
    atomic.make_folder(out)
    for name, text in texts.items():
        if text:
            atomic.write_text(out / name, text)
    return [out / name for name, text in texts.items() if text]


def _refuse_unknown_metrics(loaded: LoadedSweep) -> None:
    """RecipeError for a metric that there is not."""
    import difflib

    known = tables.known_metrics()
    for i, name in enumerate(loaded.sweep.metrics):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {close[0]}?" if close else f"choose of {', '.join(known)}"
            raise RecipeError(f"there is no figure {name}", where=loaded.where("metrics", i), fix=fix)


def _refuse_unknown_policy(loaded: LoadedSweep, variant: Variant, plan: Plan) -> None:
    """RecipeError for a policy that a run will not have, or that nothing measures."""
    place = sweep_place(loaded.sweep, variant)
    has = [stage.id.removeprefix("evaluate-") for stage in plan.stages if stage.kind == "evaluate"]
    if not has:
        raise RecipeError(
            "its runs measure nothing",
            where=loaded.where("variants", place),
            fix="set data.heldout above 0, and evaluation.enabled to true",
        )
    if variant.policy != "last" and str(variant.policy) not in has:
        raise RecipeError(
            f"its runs have no policy {variant.policy}",
            where=loaded.where("variants", place, "policy"),
            fix=f"choose of last, {', '.join(has)}",
        )


def _rounds(prepared: PreparedSweep, told: Told) -> Iterator[tuple[list[int], list[str]]]:
    """The seeds and variants of each round: of successive halving, and at last all seeds of what is left."""
    sweep = prepared.sweep
    left = [variant.name for variant in sweep.variants]
    for number, round_ in enumerate(sweep.halving, start=1):
        seeds = sweep.seeds[: round_.seeds]
        yield seeds, left
        others = [_measured(prepared, v, seeds) for v in sweep.variants if v.name in left and v.name != sweep.control]
        kept = tables.best(others, sweep.metrics[0], round_.keep)
        left = [name for name in left if name in kept or name == sweep.control]
        told.say(f"round {number}: {', '.join(kept) or 'none'} go on beside {sweep.control}")
    yield list(sweep.seeds), left


def _measured(prepared: PreparedSweep, variant: Variant, seeds: Sequence[int] | None = None) -> Measured:
    """The figures of a variant on the seeds whose runs have come to its policy."""
    figures = tables.figures_of(prepared.sweep.metrics)
    found = {}
    for run in prepared.runs:
        if variant.name in run.variants and (seeds is None or run.seed in seeds):
            plan, folder = run.prepared.plan, run.prepared.run
            if variant.policy == "last" and run.left():
                continue
            values = tables.values_of(plan, folder.manifests(plan), variant.policy, figures)
            if values is not None:
                found[run.seed] = values
    return Measured(variant, found)


def _do(
    prepared: PreparedSweep, runs: Sequence[SweepRun], work: _Work, told: Told, consent: Consent, accept: bool
) -> None:
    """Do some runs, each when no other process works on it or on a stage that it needs, too."""
    waits = False
    todo = [run for run in runs if run.name not in work.failed]
    while True:
        held = [run for run in prepared.runs if run.prepared.run.holder() is not None]
        todo = [run for run in todo if run.left()]  # others may have done it
        if not todo:
            return
        free = _first_free(todo, held)
        if free is None:
            if not waits:
                told.say("waiting for runs that another process works on")
            waits = True
            time.sleep(LOOK_AGAIN_SECONDS)
            continue
        waits = False
        todo.remove(free)
        if not _do_one(free, work, told, consent, accept, left=len(todo)):
            time.sleep(LOOK_AGAIN_SECONDS)
            todo.append(free)


def _first_free(todo: Sequence[SweepRun], held: Sequence[SweepRun]) -> SweepRun | None:
    """The first run that nobody works on, and that shares no unfinished stage with one that somebody works on."""
    busy = {stage.key for run in held for stage in run.left()}
    return next((run for run in todo if run not in held and not busy & {stage.key for stage in run.left()}), None)


def _do_one(run: SweepRun, work: _Work, told: Told, consent: Consent, accept: bool, *, left: int) -> bool:
    """Do a run, and note how it failed; False if another process was faster to take it."""
    prepared = run.prepared
    needed = run.left()
    for stage, other in work.broken:
        if stage in needed:  # with the same limits, too, which are not in its key
            work.failed[run.name] = type(work.failed[other])(f"needs {stage.id}, which failed in {other}")
            told.say(f"{run.name} {work.failed[run.name]}")
            return True
    try:
        api.run_recipe(
            prepared, told.stages(run, left), accept=accept, executors=_executors(prepared.plan, work), consent=consent
        )
    except LockedError:
        return False
    except SpaError as error:
        work.failed[run.name] = error
        plan, folder = prepared.plan, prepared.run
        work.broken += [(stage, run.name) for stage in plan.stages if folder.status(stage, plan) == "failed"]
        told.say(f"{run.name} failed: {error}")
    return True


def _executors(plan: Plan, work: _Work) -> Executors:
    from spa_recipes.run.executors import Executors

    settings = plan.recipe.compute.executor
    key = settings.model_dump_json()
    if key not in work.executors:
        work.executors[key] = Executors(settings)
    return work.executors[key]
