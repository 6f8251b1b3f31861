"""What `spa plan` prints."""

from collections.abc import Sequence
from typing import NamedTuple

from spa_recipes import api
from spa_recipes.cli.consent import print_powers
from spa_recipes.cli.terminal import (
    bold,
    cyan,
    green,
    is_shown_as_it_is,
    red,
    say,
    say_document,
    say_json,
    table,
    yellow,
)
from spa_recipes.data.asked import check_counted
from spa_recipes.errors import DataError, RecipeError, SpaError
from spa_recipes.estimates import SCORING, TRAINING, Hardware, Need, gpu_of, needs, parameters_of, seconds_of, steps_of
from spa_recipes.plan import KINDS, Plan, Stage
from spa_recipes.recipe.schema import Recipe, Training
from spa_recipes.run.disk import free_bytes
from spa_recipes.run.fit import hardware_for, in_words, is_tight, misfit, not_shared_out
from spa_recipes.run.packages import missing_packages, missing_tasks
from spa_recipes.units import human_bytes, human_count, human_seconds

MARKS = {"done": green("+"), "to do": yellow("o")}
"""Marks of a stage, by its state; any other state means that another run has it."""

HEADINGS = ("stage", "state", "rows", "steps", "tokens <=", "memory <=", "disk <=", "time <=", "what it does")
NUMBERS = HEADINGS[2:-1]


class _Planned(NamedTuple):
    """A stage with what it needs; `seconds` on the hardware that is here, or that the recipe was written for."""

    view: api.StageView
    need: Need
    seconds: float | None


def print_plan(prepared: api.Prepared, *, diff: bool, verbose: bool = False, overrides: Sequence[str] = ()) -> None:
    """Print a line per stage, what does not fit, and the totals of what is to do.

    Args:
        diff: say of every stage why it is stale, field by field.
        verbose: print every stage with its inputs, key and needs.
    """
    plan, run = prepared.plan, prepared.run
    hardware = hardware_for(plan.recipe)
    planned = [_planned(view, plan, hardware) for view in api.plan_view(prepared)]
    say(f"{bold(plan.recipe.name)} in {run.path}: {len(plan.stages)} stages", "")
    if verbose:
        for one in planned:
            _print_stage(one, why=diff or one.view.why != "never run")
    else:
        say(*table(HEADINGS, [_cells(one) for one in planned], right=NUMBERS, wrap=False, shorten=True))
        for view, _, _ in planned:
            if view.why and (diff or not (view.why == "never run" or view.why.startswith("needs "))):
                say(f"{view.stage.id}: {view.why}")
        say("")
    _print_problems(plan, hardware)
    _print_misfits(planned, plan, hardware)
    left = [one for one in planned if one.view.state != "done"]
    _print_idle([one.view.stage for one in left])
    _print_totals(left, prepared, hardware)
    print_powers(plan, run.path, overrides)


def _planned(view: api.StageView, plan: Plan, hardware: Hardware | None) -> _Planned:
    need = needs(view.stage, plan, hardware)
    seconds = None if hardware is None else seconds_of(view.stage, plan.recipe, need.tokens, hardware)
    return _Planned(view, need, seconds)


def _cells(planned: _Planned) -> tuple[str, ...]:
    (stage, state, _), need, seconds = planned
    sizes = (
        human_count(stage.rows),
        _count(need.steps),
        human_count(need.tokens),
        human_bytes(None if need.memory is None else need.memory.total),
        human_bytes(need.disk),
        "-" if seconds is None else human_seconds(seconds),
    )
    return (stage.id, state, *("" if size == "-" else size for size in sizes), stage.role)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _print_problems(plan: Plan, hardware: Hardware | None) -> None:
    """What would end the run at once, as far as it can be known here without reading rows."""
    problems: list[SpaError] = [*missing_packages(plan.recipe)]
    try:
        if isinstance(plan.recipe, Recipe):
            check_counted(plan.recipe.data)
        if not problems and (unshared := not_shared_out(plan.stages, plan.recipe, hardware)):
            problems.append(unshared)
    except (DataError, RecipeError) as error:
        problems.append(error)
    if not problems:
        problems += missing_tasks(plan.recipe)
    for problem in problems:
        say(red(f"! {problem}"))


def _print_misfits(planned: Sequence[_Planned], plan: Plan, hardware: Hardware | None) -> None:
    """What does not fit the hardware, or perhaps not."""
    misfits = {
        one.view.stage.id: problem for one in planned if (problem := misfit(one.view.stage, plan, hardware, None))
    }
    for name, problem in misfits.items():
        say(red(f"! {name} {problem.what}"), f"  {problem.fix}")
    stages = [one.view.stage for one in planned if one.view.stage.id not in misfits]
    if tight := [stage.id for stage in stages if is_tight(stage, plan, hardware)]:
        say(yellow(f"! {', '.join(tight)} may not fit where rows are as long as model.max_length"))


def _print_idle(stages: Sequence[Stage]) -> None:
    """Trainings of one step, in which the learning rate rises from 0."""
    if idle := [stage.id for stage in stages if steps_of(stage) == 1 and _rises(stage.settings["training"])]:
        say(
            yellow(f"! nothing is learned in one step at learning rate 0, the warm-up's first: {', '.join(idle)}"),
            "  lower global_batch_size, or set warmup_ratio to 0",
        )


def _rises(training: Training) -> bool:
    """Whether the first step has a learning rate of 0."""
    return training.warmup_ratio > 0 and training.lr_scheduler_type != "constant"


def _print_totals(left: Sequence[_Planned], prepared: api.Prepared, hardware: Hardware | None) -> None:
    """What the stages that are still to be done need together."""
    plan, run = prepared.plan, prepared.run
    if not left:
        say("to do:  nothing; every stage is done")
        return
    steps, tokens = (sum(getattr(one.need, name) or 0 for one in left) for name in ("steps", "tokens"))
    at_most = f", at most {human_count(tokens)} tokens" if tokens else ""
    uncounted = _uncounted(left)
    say(f"to do:  {len(left)} of {len(plan.stages)} stages, {steps:,} optimizer steps{at_most}{uncounted}")
    free = human_bytes(free_bytes(run.path.absolute()))
    if parameters_of(plan.recipe) is None:
        name = plan.recipe.model.model_name_or_path
        say(
            f"disk:   unknown; {free} are free",
            f"memory: unknown, as the size of {name} is while it is not on this disk: state model.num_parameters",
        )
        return
    disk, scratch = sum(one.need.disk or 0 for one in left), max(one.need.scratch or 0 for one in left)
    say(
        f"disk:   {human_bytes(disk)} for results"
        + (f" and up to {human_bytes(scratch)} for checkpoints while a stage trains" if scratch else "")
        + f"; {free} are free"
    )
    most = max((one.need.memory.total for one in left if one.need.memory is not None), default=None)
    host = max(one.need.host or 0 for one in left)
    of_machine = f"; of the machine itself {human_bytes(host)}" if host else ""
    if most is not None:
        say(f"memory: {human_bytes(most)} of each device, for rows as long as model.max_length{of_machine}")
    _print_time([one.seconds for one in left if one.seconds is not None], hardware, uncounted)


def _uncounted(left: Sequence[_Planned]) -> str:
    """Which stages the totals leave out, since nobody knows yet how many rows they get."""
    names = [one.view.stage.id for one in left if KINDS[one.view.stage.kind].loads_model and one.need.tokens is None]
    return f", and {', '.join(names)}, whose rows are not known yet" if names else ""


def _print_time(times: Sequence[float], hardware: Hardware | None, uncounted: str) -> None:
    if hardware is not None and times and (found := gpu_of(hardware)) is not None:
        say(
            f"time:   up to {human_seconds(sum(times))} on {hardware.gpus} x {hardware.model or found[0]}, "
            f"{sum(times) * hardware.gpus / 3600:.1f} GPU-hours{uncounted} "
            f"({found[1].flops / 1e12:.0f} TFLOP/s): {SCORING:.0%} of that for scoring (measured on an H200), "
            f"{TRAINING:.0%} for training (assumed), sampling by memory (assumed); "
            "`spa run --rehearse` measures it"
        )


def _print_stage(planned: _Planned, *, why: bool) -> None:
    view, need, seconds = planned
    stage = view.stage
    say(f"{MARKS.get(view.state, cyan('='))} {bold(stage.id)}  {stage.role}")
    for name, value in stage.inputs.items():
        say(f"    {name:<16} {value}")
    if stage.after:
        say(f"    {'waits for':<16} {', '.join(stage.after)}")
    say(f"    {'key':<16} {stage.key[:16]}  {view.state}")
    if view.why and why:
        say(f"    {'why':<16} {view.why}")
    sizes = {
        "rows": human_count(stage.rows),
        "steps": _count(need.steps),
        "tokens <=": human_count(need.tokens),
        "disk <=": human_bytes(need.disk),
        "while it runs <=": human_bytes(need.scratch),
        "time <=": "-" if seconds is None else human_seconds(seconds),
    }
    if known := ", ".join(f"{name} {value}" for name, value in sizes.items() if value != "-"):
        say(f"    {'needs':<16} {known}")
    if need.memory is not None:
        how = "" if need.sharding == "none" else f", shared out by {need.sharding}"
        say(f"    {'memory <=':<16} {human_bytes(need.memory.total)} of each device{how}: {in_words(need.memory)}")
    if (saves := need.checkpoints) is not None:
        size = "" if saves.size is None else f", {human_bytes(saves.size)} each"
        say(f"    {'checkpoints':<16} every {saves.every} steps{size}, {saves.kept} kept")
    say("")


def print_recipe(prepared: api.Prepared) -> None:
    """Print the recipe with everything that it extends and all defaults, as a recipe."""
    import yaml

    whole = prepared.plan.recipe.model_dump(mode="json")
    text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=110)
    if not is_shown_as_it_is(text):
        text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=False, width=110)
    say_document(text)


def print_plan_json(prepared: api.Prepared) -> None:
    """Print the plan for scripts."""
    stages = [
        {
            "id": view.stage.id,
            "kind": view.stage.kind,
            "role": view.stage.role,
            "key": view.stage.key,
            "inputs": {name: str(value) for name, value in view.stage.inputs.items()},
            "waits_for": list(view.stage.waits_for),
            "rows": view.stage.rows,
            "steps": steps_of(view.stage),
            "state": view.state,
            "why": view.why,
        }
        for view in api.plan_view(prepared)
    ]
    say_json(stages)
