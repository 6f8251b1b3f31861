"""What `spa plan` prints."""

from collections.abc import Sequence

from spa_recipes import api
from spa_recipes.cli.consent import print_powers
from spa_recipes.cli.terminal import bold, cyan, green, is_shown_as_it_is, red, say, say_document, say_json, yellow
from spa_recipes.estimates import SCORING, TRAINING, Need, gpu_of, needs, seconds_of
from spa_recipes.run.disk import free_bytes
from spa_recipes.run.fit import hardware_for, in_words, is_tight, misfit
from spa_recipes.units import human_bytes, human_count, human_seconds

MARKS = {"done": green("+"), "to do": yellow("o")}
"""Marks of a stage, by its state; any other state means that another run has it."""


def print_plan(prepared: api.Prepared, *, diff: bool, overrides: Sequence[str] = ()) -> None:
    """Print every stage with its inputs, key, state and needs; with `diff`, say of every stage why it is stale."""
    plan, run = prepared.plan, prepared.run
    hardware = hardware_for(plan.recipe)
    say(f"{bold(plan.recipe.name)} in {run.path}: {len(plan.stages)} stages")
    disk, scratch, host, times = 0, 0, 0, list[float]()
    for view in api.plan_view(prepared):
        need = needs(view.stage, plan)
        seconds = None if hardware is None else seconds_of(view.stage, plan.recipe, need.tokens, hardware)
        if view.state != "done":
            disk, scratch, host = disk + (need.disk or 0), max(scratch, need.scratch or 0), max(host, need.host or 0)
            times += [] if seconds is None else [seconds]
        _print_stage(view, need, seconds, why=diff or view.why != "never run")
        if problem := misfit(view.stage, plan, hardware, None):
            say(f"    {red('! ' + problem.what)}", f"      {problem.fix}")
        elif is_tight(view.stage, plan, hardware):
            say(yellow("    ! may not fit where rows are as long as model.max_length"))
    say(
        "",
        f"disk:   {human_bytes(disk)} for results and up to {human_bytes(scratch)} for checkpoints while a stage "
        f"trains; {human_bytes(free_bytes(run.path.absolute()))} are free",
    )
    if host:
        say(f"memory: of each device, for rows as long as model.max_length; of the machine itself {human_bytes(host)}")
    if hardware is not None and times and (found := gpu_of(hardware)) is not None:
        say(
            f"time:   up to {human_seconds(sum(times))} on {hardware.gpus} x {hardware.model or found[0]} "
            f"({found[1].flops / 1e12:.0f} TFLOP/s): {SCORING:.0%} of that for scoring (measured on an H200), "
            f"{TRAINING:.0%} for training (assumed), sampling by memory (assumed); "
            "`spa run --rehearse` measures it"
        )
    print_powers(plan, run.path, overrides)


def _print_stage(view: api.StageView, need: Need, seconds: float | None, *, why: bool) -> None:
    stage = view.stage
    say("", f"{MARKS.get(view.state, cyan('='))} {bold(stage.id)}  {stage.role}")
    for name, value in stage.inputs.items():
        say(f"    {name:<16} {value}")
    if stage.after:
        say(f"    {'waits for':<16} {', '.join(stage.after)}")
    say(f"    {'key':<16} {stage.key[:16]}  {view.state}")
    if view.why and why:
        say(f"    {'why':<16} {view.why}")
    sizes = {
        "rows": human_count(stage.rows),
        "tokens <=": human_count(need.tokens),
        "disk <=": human_bytes(need.disk),
        "while it runs <=": human_bytes(need.scratch),
        "time <=": "-" if seconds is None else human_seconds(seconds),
    }
    if known := ", ".join(f"{name} {value}" for name, value in sizes.items() if value != "-"):
        say(f"    {'needs':<16} {known}")
    if need.memory is not None:
        say(f"    {'memory <=':<16} {human_bytes(need.memory.total)} of each device: {in_words(need.memory)}")


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
            "state": view.state,
            "why": view.why,
        }
        for view in api.plan_view(prepared)
    ]
    say_json(stages)
