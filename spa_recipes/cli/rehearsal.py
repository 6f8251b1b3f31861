"""What `spa run RECIPE --rehearse` says: what each stage used, and what the full run will take."""

from collections.abc import Sequence

from spa_recipes import api
from spa_recipes.cli.consent import consent_of
from spa_recipes.cli.progress import RunReporter
from spa_recipes.cli.terminal import bold, cut, red, say, table
from spa_recipes.errors import SpaError
from spa_recipes.plan import Plan, Stage
from spa_recipes.recipe.schema import Sampling, VllmBackend
from spa_recipes.run.disk import free_bytes
from spa_recipes.run.rehearsal import ROWS, Rehearsed, first_answers, outcome
from spa_recipes.state import marker
from spa_recipes.units import human_bytes, human_count, human_seconds

HEADINGS = ("stage", "peak memory", "estimate", "tokens/s", "full run", "disk")


def rehearse_run(prepared: api.Prepared, *, overrides: Sequence[str], until: str | None, trust: bool) -> None:
    """Rehearse a run, and print what was found; an error that stopped it is raised after that.

    Args:
        prepared: the full run.
    """
    rehearsal = api.prepare_rehearsal(prepared)
    failure = None
    try:
        with RunReporter(rehearsal) as reporter:
            consent = consent_of(reporter, trust=trust, overrides=overrides)
            api.run_recipe(rehearsal, reporter, until=until, accept=True, consent=consent)
    except SpaError as error:
        failure = error
    if marker.kind_of(rehearsal.run.path) is not None:  # it began
        print_rehearsal(prepared.plan, rehearsal, failure)
    if failure is not None:
        raise failure


def print_rehearsal(full: Plan, prepared: api.Prepared, failure: SpaError | None) -> None:
    """Print what a rehearsal found, as far as it came.

    Args:
        full: the plan of the recipe itself.
        prepared: the rehearsal's.
        failure: what stopped it.
    """
    plan, run = prepared.plan, prepared.run
    found = outcome(full, plan, run)
    say("", f"{bold('rehearsal')} of {plan.recipe.name} in {run.path}: {ROWS} rows through each stage")
    say(*table(HEADINGS, [_cells(one) for one in found], right=HEADINGS[2:]))
    for one in found:
        if one.used is not None and one.used.device and one.estimate and one.used.device > one.estimate.total:
            say(red(f"! {one.stage.id} took more memory than the estimate, and longer rows will take more than this"))
    _print_totals(found, full, prepared)
    for number, answer in enumerate(first_answers(plan, run), start=1):
        say("", bold(f"answer {number}, as the model sees it"), cut(answer.prompt, 2000) + cut(answer.response, 2000))
    left = [stage.id for stage in plan.stages if stage.id not in {one.stage.id for one in found}]
    if failure is not None:
        say("", red(f"failed: {failure.where or plan.recipe.name}"), f"not rehearsed: {', '.join(left)}")
    else:
        say("", "every stage went through" if not left else f"not rehearsed: {', '.join(left)}")


def _cells(one: Rehearsed) -> tuple[str, ...]:
    return (
        one.stage.id,
        _peak(one),
        human_bytes(None if one.estimate is None else one.estimate.total),
        human_count(one.tokens_per_second),
        "-" if one.seconds is None else human_seconds(one.seconds),
        human_bytes(one.disk),
    )


def _peak(one: Rehearsed) -> str:
    if _samples_with_vllm(one.stage):
        return "vLLM's share"
    if one.used is None:
        return "-"
    if one.used.device is not None:
        return human_bytes(one.used.device)
    return f"{human_bytes(one.used.host)} of the process"


def _samples_with_vllm(stage: Stage) -> bool:
    sampling = stage.settings.get("sampling")
    return isinstance(sampling, Sampling) and isinstance(sampling.backend, VllmBackend)


def _print_totals(found: Sequence[Rehearsed], full: Plan, prepared: api.Prepared) -> None:
    seconds = sum(one.seconds or 0.0 for one in found)
    disk = sum(one.disk or 0 for one in found)
    checkpoints = max((one.checkpoints for one in found), default=0)
    unknown = [one.stage.id for one in found if one.seconds is None]
    beside = f" beside {', '.join(unknown)}, whose rows are not known" if unknown else ""
    say(
        f"the full run of these {len(found)} of {len(full.stages)} stages: {human_seconds(seconds)}{beside}; "
        f"{human_bytes(disk)} on the disk and up to {human_bytes(checkpoints)} for checkpoints; "
        f"{human_bytes(free_bytes(prepared.run.path.absolute()))} are free"
    )
    if any(one.estimate is not None for one in found):
        say("estimates are for rows as long as model.max_length; those of a rehearsal are shorter, and take less")
